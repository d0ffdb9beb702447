"""Weak users to the language model: who they are, what they get, and what the others keep."""

import json

import numpy as np
import pytest

from llmrec.data.candidates import read_candidates, read_log_q
from llmrec.data.catalog import Catalog
from llmrec.data.records import Examples
from llmrec.evaluation.predictions import Predictions
from llmrec.stages import evaluate, prepare, recommend
from llmrec.systems import language
from llmrec.systems.recommender import Recommender
from llmrec.systems.routing import Routing, target_auc

FROM = ("data.candidates.from=markov", "data.candidates.count=3", "decode.fusion.weight=0.5")
SYSTEMS = "systems=[markov, untuned, untuned_fused, untuned_routed]"


class Scores:
    """A scorer of one user whose scores are said."""

    def __init__(self, *values):
        self.values = np.array([values])

    def scores(self, histories, filter_seen=True):
        return np.repeat(self.values, len(histories), axis=0)


@pytest.mark.parametrize(
    ("scores", "target", "auc"),
    [
        ((3.0, 2.0, 1.0, 0.0), 0, 1),
        ((3.0, 2.0, 1.0, 0.0), 2, 1 / 3),
        ((3.0, 1.0, 1.0, 0.0), 1, 1.5 / 3),
        ((3.0, -np.inf, 1.0, 0.0), 2, 1 / 2),
        ((3.0, -np.inf, 1.0, 0.0), 1, 0),
    ],
)
def test_auc_is_the_share_of_open_items_below(scores, target, auc):
    none = [np.zeros(0, np.int32)]
    found = target_auc(Scores(*scores), none, np.array([target]), 4, True)
    assert found.tolist() == pytest.approx([auc])


def test_weak_is_who_has_chosen_little_and_is_served_badly():
    routing = Routing(2.0, 0.6, {"good": 0.9, "bad": 0.6})
    few, many = np.zeros(2, np.int32), np.zeros(3, np.int32)
    users = ["good", "bad", "bad", "nobody", "nobody"]
    found = routing.weak([few, few, many, few, many], users)
    assert found.tolist() == [False, True, False, True, False]
    assert routing.weak([few, many], None).tolist() == [True, False]


def test_the_model_is_asked_for_weak_users_alone(recipe_of, monkeypatch):
    routing = ("decode.routing.history=0.6", "decode.routing.auc=0.9")
    recipe, folder = recipe_of(*FROM, SYSTEMS, *routing)
    prepare.run(recipe, folder)
    read = []
    real = language.answered
    monkeypatch.setattr(
        "llmrec.systems.routing.answered",
        lambda *given: read.append(len(given[-1])) or real(*given),
    )
    recommend.run(recipe, folder)
    folder.keep(recipe)
    valid, test = (Examples.read(folder.examples(part)) for part in ("valid", "test"))
    said = {name: Predictions.read(folder.predictions(name)) for name in recipe.systems}
    told = said["untuned_routed"].info.hyperparameters
    lengths = np.array([len(history) for history in valid.histories()])
    assert told["longest_history"] == np.quantile(lengths, 0.6)
    weak = json.loads(folder.routed("untuned_routed").read_text("utf-8"))
    assert 0 < sum(weak) < len(test)
    assert read == [sum(weak)]
    assert told["share_routed"] == pytest.approx(np.mean(weak))
    assert told["model_calls_saved"] == pytest.approx(1 - np.mean(weak))
    path = folder.candidates("test")
    rows = zip(weak, read_candidates(path).tolist(), read_log_q(path), strict=True)
    for i, (is_weak, items, log_q) in enumerate(rows):
        ours = said["untuned_routed"].ranking(i).tolist()
        best = [item for _, item in sorted(zip(-log_q, items, strict=True))]
        assert ours == (said["untuned_fused"].ranking(i).tolist() if is_weak else best)
        if not is_weak:
            assert ours == said["markov"].ranking(i).tolist()
    assert all(len(test.history(i)) <= told["longest_history"] for i in np.flatnonzero(weak))
    ids = Catalog.read(folder.items).item_ids
    histories = [[ids[p] for p in history] for history in test.histories()]
    recommender = Recommender(recipe, folder, "untuned_routed")
    table = recommender.recommend(histories, top_k=3, users=test.user_ids.tolist())
    expected = [ids[p] for i in range(len(test)) for p in said["untuned_routed"].ranking(i)]
    assert table["item_id"].to_pylist() == expected
    text = evaluate.run(recipe, folder)["table"]
    assert f"untuned_routed asks its model for {sum(weak)} of {len(test)}" in text
    assert "worst group" in text
