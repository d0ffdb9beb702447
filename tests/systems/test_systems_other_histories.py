"""NLL behind another user's history, against reading every path alone; and the gates made of it."""

import json

import numpy as np
import pyarrow.parquet as pq
import torch

from llmrec.data.catalog import Catalog
from llmrec.data.records import Examples
from llmrec.evaluation.gates import another_user
from llmrec.evaluation.predictions import Predictions
from llmrec.inference.from_recipe import base_of, encoder_of
from llmrec.model.loading import load_model
from llmrec.stages import evaluate, recommend

ASKED = ("systems=[popularity, untuned]", "evaluate.gates=true")


def nll_of(model, encoder, history, target):
    """Minus log-probability of a title's tokens, each over those that continue some title."""
    prompt, tokens, total = (
        list(encoder.prompt(history).ids),
        list(encoder.completions[target]),
        0.0,
    )
    for at, token in enumerate(tokens):
        ids = torch.tensor([prompt + tokens[:at]])
        with torch.no_grad():
            logits = model(input_ids=ids).logits[0, -1].double()
        allowed = encoder.trie.allowed(tokens[:at]).tolist()
        total -= float(torch.log_softmax(logits[allowed], 0)[allowed.index(token)])
    return total


def test_the_prompt_is_anothers_and_nothing_else(recipe_of):
    recipe, folder = recipe_of(*ASKED, "decode.filter_seen=false")
    written = recommend.run(recipe, folder)["written"]
    assert "untuned with other histories" in written
    test = Examples.read(folder.examples("test"))
    encoder = encoder_of(recipe, Catalog.read(folder.items), folder)
    model = load_model(base_of(recipe))
    found = Predictions.read(folder.other_history("untuned"))
    other = another_user(test.user_ids, recipe.seed)
    for row in range(0, len(test), 5):
        shown, target = test.history(int(other[row])), int(test.targets[row])
        assert abs(found.nll[row] - nll_of(model, encoder, shown, target)) < 1e-4
    assert recommend.run(recipe, folder)["written"] == []


def test_closed_items_stay_the_users_own_and_evaluate_tells_the_gates(recipe_of):
    recipe, folder = recipe_of(*ASKED)
    recommend.run(recipe, folder)
    own = Predictions.read(folder.predictions("untuned")).nll
    other = Predictions.read(folder.other_history("untuned")).nll
    assert np.isfinite(other).tolist() == np.isfinite(own).tolist()
    told = evaluate.run(recipe, folder)
    metrics = json.loads(folder.metrics.read_text("utf-8"))
    assert list(metrics["gates"]) == ["untuned"]
    gates = metrics["gates"]["untuned"]
    popular = Predictions.read(folder.predictions("popularity")).nll
    both = np.isfinite(own) & np.isfinite(popular)
    assert np.isclose(gates["over_popularity"]["mean"], (own - popular)[both].mean())
    assert np.isclose(gates["sensitivity"]["mean"], (other - own)[np.isfinite(own)].mean())
    assert gates["sensitivity"]["low"] < gates["sensitivity"]["mean"] < gates["sensitivity"]["high"]
    firsts = {int(r[0]) for r in Predictions.read(folder.predictions("untuned")).rankings()}
    assert gates["distinct"] == len(firsts) / len(own)
    assert told["gates"].startswith("untuned fails: " if gates["failed"] else "untuned passes")
    rows = pq.read_table(folder.per_user, filters=[("system", "==", "untuned")])
    np.testing.assert_allclose(rows["sensitivity"].to_numpy(), other - own)


def test_without_gates_nothing_is_asked_or_told(recipe_of):
    recipe, folder = recipe_of("systems=[popularity]")
    recommend.run(recipe, folder)
    told = evaluate.run(recipe, folder)
    assert "gates" not in told
    assert not folder.other_history("popularity").parent.exists()
    assert json.loads(folder.metrics.read_text("utf-8"))["gates"] == {}
