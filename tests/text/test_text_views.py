"""Rows of two views: each of their paths is a prompt and a completion as they stand alone."""

import numpy as np
import pytest

from llmrec.errors import RecipeError
from llmrec.recipe import shipped
from llmrec.text.encoding import PromptEncoder
from llmrec.text.rows import single, two_views, widened, with_candidates
from llmrec.text.templates import PromptTemplate

MOVIE = PromptTemplate(shipped.prompt_text("next_item/movie"), "next_item/movie")
TITLES = [
    "The Man",
    "The Man II",
    "Dark City",
    "A Star",
    "Last Summer",
    "Love",
    "River: the End",
    "Blue",
    "Red",
    "The World",
]


def paths_of(tree):
    """The token ids, target and kind of every path."""
    found = []
    for path in tree.paths():
        ids = np.concatenate([tree.segments[i].ids for i in path])
        found.append((ids.tolist(), tree.segments[path[-1]].target, tree.segments[path[-1]].kind))
    return found


@pytest.mark.parametrize("form", ["plain", "chat"])
@pytest.mark.parametrize("further", [[4], [4, 5]])
@pytest.mark.parametrize("history", [[3], [0, 1], [9, 0, 1]])
def test_every_path_is_a_prompt_and_its_completion(tokenizer, form, further, history):
    encoder = PromptEncoder(MOVIE, tokenizer, TITLES, form=form, max_history=2)
    longer = PromptEncoder(MOVIE, tokenizer, TITLES, form=form, max_history=4)
    first, second = [4, 7, 2], [8, 2, 6]
    views = two_views(encoder, widened(encoder, 2), history, further)
    tree = with_candidates(views, encoder.completions, first, second)
    expected = []
    for place, item in enumerate(first):
        [(ids, _, _)] = paths_of(single(encoder, history, item))
        expected.append((ids, item, min(place, 1)))
    for item in second:
        [(ids, _, _)] = paths_of(single(longer, [*history[-2:], *further], item))
        expected.append((ids, item, 2))
    assert paths_of(tree) == expected
    assert tree.flatten().kinds.tolist() == [0, 1, 1, 2, 2, 2]
    assert tree.flatten().branch_count == 6
    assert encoder.max_history == 2


def test_what_the_budget_drops_is_missing_in_both_views(tokenizer):
    whole = PromptEncoder(MOVIE, tokenizer, TITLES, max_history=9)
    longest = max(map(len, whole.completions))
    for shown, kept in (([0, 1, 2, 3, 4], 3), ([2, 3, 4], 1), ([3, 4], 0), ([4], 0)):
        room = len(whole.prompt(shown).ids)
        tight = PromptEncoder(MOVIE, tokenizer, TITLES, max_history=3, max_tokens=room + longest)
        views = two_views(tight, widened(tight, 2), [0, 1, 2], [3, 4])
        first, second = views.prompts()
        assert second.tolist() == whole.prompt(shown).ids.tolist()
        if kept:
            assert first.tolist() == whole.prompt([0, 1, 2][-kept:]).ids.tolist()
            assert len(views.trunk) > 0
        else:
            assert first.tolist() == tight.prompt([0, 1, 2]).ids.tolist()
            assert len(views.trunk) == 0
        tree = with_candidates(views, whole.completions, [3], [5])
        read = [
            np.concatenate([p, whole.completions[i]]).tolist() for p, i in ((first, 3), (second, 5))
        ]
        assert [ids for ids, _, _ in paths_of(tree)] == read
        flat = tree.flatten()
        for branch, path in enumerate(read):
            last = np.flatnonzero(flat.branches == branch)[-1]
            row = np.flatnonzero(flat.mask[flat.predictors[last]])
            assert flat.input_ids[row].tolist() == path[:-1]
            assert flat.position_ids[row].tolist() == list(range(len(path) - 1))


def test_a_template_that_counts_titles_is_refused(tokenizer):
    text = (
        "{% block prompt %}{{ history|length }} movies:{% for t in history %} {{ t }}"
        "{% endfor %}:{% endblock %}"
        "{% block completion %}{{ target }}{% endblock %}"
    )
    encoder = PromptEncoder(PromptTemplate(text, "counting"), tokenizer, TITLES, max_history=1)
    with pytest.raises(RecipeError, match="beginning"):
        widened(encoder, 2)
