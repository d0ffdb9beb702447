"""What a recipe can say about similar users and candidates, and what it is told it cannot."""

import pytest
from pydantic import ValidationError

from llmrec.errors import RecipeError
from llmrec.recipe import Recipe
from llmrec.recipe.demonstrations import Demonstrations
from llmrec.recipe.loading import dump, load

SIMILAR = {
    "prompt": {"task": "similar_users"},
    "demonstrations": {"count": 2},
    "systems": ["popularity", "untuned", "tuned"],
}
AMONG = {"data": {"source": "ml-100k", "candidates": 20}, "systems": ["markov", "tuned_free"]}


def recipe(*changes):
    said = {"name": "x", "data": {"source": "ml-100k"}}
    for change in changes:
        said |= change
    return Recipe.model_validate(said)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ([SIMILAR, {"prompt": {"task": "next_item"}}], r"shown by prompt\.task similar_users"),
        ([SIMILAR, {"rows": {"shape": "all_targets"}}], r"need rows\.shape single"),
        ([SIMILAR, {"rows": {"shape": "inline"}}], r"need rows\.shape single"),
        ([SIMILAR, {"soft": {}}], "demonstrations and soft cannot be combined"),
        (
            [SIMILAR, {"demonstrations": {"count": 4, "selection": {"pool": 3}}}],
            r"selection\.pool = 3 users cannot give count = 4",
        ),
        (
            [SIMILAR, {"demonstrations": {"count": 3, "similarity": {"coarse": 2}}}],
            r"similarity\.coarse = 2 .* cannot give the 3",
        ),
        (
            [SIMILAR, {"demonstrations": {"selection": {"pool": 9}, "similarity": {"coarse": 8}}}],
            r"similarity\.coarse = 8 .* cannot give the 9",
        ),
        (
            [
                SIMILAR,
                {
                    "demonstrations": {
                        "similarity": {
                            "weights": dict.fromkeys(
                                ("cosine", "jaccard", "lcs", "recency", "transition", "dtw"), 0
                            )
                        }
                    }
                },
            ],
            "at least one weight above 0",
        ),
        ([{"systems": ["popularity", "tuned_free"]}], r"system tuned_free .* data\.candidates"),
        ([{"systems": ["untuned_free"]}], r"system untuned_free .* data\.candidates"),
        ([AMONG, {"soft": {}}], "soft knows no candidates"),
        (
            [AMONG, {"validation": {"metric": "hr", "answer": "grounding"}}],
            "grounding ranks the whole catalog",
        ),
        (
            [AMONG, {"rows": {"shape": "inline"}, "prompt": {"task": "similar_users"}}],
            "candidates are those of one target",
        ),
        ([AMONG, {"systems": ["markov", "tuned_guided"]}], "system tuned_guided answers from"),
        ([AMONG, {"systems": ["untuned_grounded"]}], "system untuned_grounded answers from"),
    ],
)
def test_what_does_not_go_together_is_refused_with_its_reason(changes, message):
    with pytest.raises(ValidationError, match=message):
        recipe(*changes)


def test_all_that_does_not_go_together_is_told_at_once(tmp_path):
    path = tmp_path / "wrong.yaml"
    path.write_text(
        "name: x\ndata: {source: ml-100k, candidates: 20}\nsoft: {}\n"
        "model: {lora: null}\nsystems: [markov, network]\n",
        "utf-8",
    )
    with pytest.raises(RecipeError) as raised:
        load(path)
    said = str(raised.value)
    assert "3 errors" in said
    for part in ("needs model.lora", "soft knows no candidates", "network is of a network"):
        assert part in said


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("count", 0),
        ("count", 21),
        ("history", 0),
        ("by", "similarity"),
        ("users", 3),
        ("selection", {"pool": 0}),
        ("selection", {"refresh": -1}),
        ("selection", {"reader": "guess"}),
        ("similarity", {"vectors": "words"}),
        ("similarity", {"every": 0}),
        ("similarity", {"weights": {"cosine": -1}}),
        ("similarity", {"weights": {"euclid": 1}}),
        ("similarity", {"encoder": ""}),
    ],
)
def test_values_out_of_bounds_are_refused(key, value):
    with pytest.raises(ValidationError, match=key):
        recipe(SIMILAR, {"demonstrations": {key: value}})


def test_one_candidate_is_no_choice():
    with pytest.raises(ValidationError, match="candidates"):
        recipe(AMONG, {"data": {"source": "ml-100k", "candidates": 1}})


@pytest.mark.parametrize(
    "changes",
    [
        [SIMILAR],
        [AMONG],
        [SIMILAR, AMONG],
        [SIMILAR, {"prompt": {"file": "mine.jinja"}}],
        [AMONG, {"rows": {"shape": "inline"}}],  # candidates that no prompt shows
        [AMONG, {"validation": {"metric": "ndcg", "k": 5}}],
        [SIMILAR, {"demonstrations": {"count": 3, "selection": {"pool": 3, "refresh": 100}}}],
        [
            SIMILAR,
            {
                "demonstrations": {
                    "similarity": {
                        "weights": {
                            "cosine": 0,
                            "jaccard": 0,
                            "lcs": 0,
                            "recency": 0,
                            "transition": 0,
                            "dtw": 0.1,
                        }
                    }
                }
            },
        ],
    ],
)
def test_what_goes_together_is_taken_and_survives_being_written(changes, tmp_path):
    taken = recipe(*changes, {"name": "kept"})
    path = tmp_path / "kept.yaml"
    path.write_text(dump(taken), "utf-8")
    written = load(path)
    assert written.demonstrations == taken.demonstrations
    assert (written.data.candidates, written.systems) == (taken.data.candidates, taken.systems)


@pytest.mark.parametrize(
    ("said", "pool"), [({"count": 4}, 4), ({"count": 4, "selection": {"pool": 9}}, 9), ({}, 3)]
)
def test_as_many_users_are_found_as_the_model_rates_or_the_prompt_shows(said, pool):
    assert Demonstrations.model_validate(said).pool == pool


def test_a_mistake_in_a_file_is_told_with_its_line(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(
        "data: {source: ml-100k}\nprompt: {task: similar_users}\ndemonstrations:\n  count: 3\n"
        "  selection: {pool: 2}\n  similarty: {coarse: 5}\n",
        "utf-8",
    )
    with pytest.raises(RecipeError) as told:
        load(path)
    assert r"mine.yaml:6: " in str(told.value)
    assert "similarity" in str(told.value)
    assert "selection.pool = 2 users cannot give count = 3" in str(told.value)
