"""Retrieval as the authors of AdaptRec do it: what it shows, where it is refused and marked."""

import pytest

from llmrec.data.records import Examples
from llmrec.errors import RecipeError
from llmrec.inference.similar_users import SimilarUsers
from llmrec.recipe.loading import dump
from llmrec.runs.folder import RunFolder
from llmrec.stages import compare, leakage, prepare, recommend
from llmrec.studies import study
from llmrec.studies.cells import planned

LEAKY = (
    "prompt.task=similar_users",
    "demonstrations.by=leaky",
    "demonstrations.count=2",
    "demonstrations.history=3",
)


def test_it_is_refused_outside_a_study(recipe_of):
    recipe, folder = recipe_of(*LEAKY, "systems=[untuned]")
    with pytest.raises(RecipeError, match="arm of `llmrec study`"):
        recommend.run(recipe, folder)


def test_it_shows_other_test_users_and_their_answers(recipe_of):
    recipe, _ = recipe_of(*LEAKY, "systems=[untuned]")
    folder = RunFolder.of(recipe, of_study=True)
    prepare.run(recipe, folder)
    test = Examples.read(folder.examples("test"))
    pools = SimilarUsers(recipe, folder).of("test", test)
    asked = {e.user_id: (e.history[-3:].tolist(), e.target, e.timestamp) for e in test}
    later = 0
    for example, pool in zip(test, pools.neighbours, strict=True):
        assert len({n.user_id for n in pool}) == len(pool) == 2
        for n in pool:
            assert n.user_id != example.user_id
            history, target, time = asked[n.user_id]
            assert (n.history.tolist(), n.chosen) == (history, target)  # the label, told
            later += time > example.timestamp
    assert later > 5
    recommend.run(recipe, folder)
    result = leakage.run(recipe, folder)
    assert result["violations"] >= 2 * len(test)
    assert any("leaky" in sentence for sentence in result["not_checked"])


STUDY = """
name: leaks
recipe: base.yaml
seeds: [0]
start: [nobody]
metrics: [NLL]
system: untuned
set: {evaluate: {k: [1], samples: 100}}
arms:
  nobody: {set: {demonstrations: null, systems: [popularity, untuned]}}
  told: {title: as the authors do it, set: {systems: [untuned, votes]}, against: [nobody]}
"""


def test_every_table_marks_it(recipe_of, tmp_path):
    recipe, _ = recipe_of(*LEAKY, "systems=[untuned, votes]", "demonstrations.votes.users=5")
    (tmp_path / "base.yaml").write_text(dump(recipe), "utf-8")
    path = tmp_path / "leaks.yaml"
    path.write_text(f"output_dir: {tmp_path / 'runs'}\n{STUDY.lstrip()}", "utf-8")
    lines = planned(path).lines
    assert lines["told"].title == "as the authors do it (leaky: shows other users' answers)"
    assert "leaky" not in lines["nobody"].title
    result = study.run(path)
    assert not result["failed"]
    page = (tmp_path / "runs/leaks/study.md").read_text("utf-8")
    assert "as the authors do it (leaky" in page
    told, nobody = (tmp_path / f"runs/leaks/{name}-s0" for name in ("told", "nobody"))
    both = compare.run([str(nobody), f"{told}:untuned", f"{told}:votes"], "markdown")
    assert "LEAKY, of no use but to compare with" in both
    assert "LEAKY" in (told / "report.html").read_text("utf-8")
    assert "LEAKY" not in (nobody / "report.html").read_text("utf-8")
