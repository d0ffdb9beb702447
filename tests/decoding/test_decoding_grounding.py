"""From what somebody wrote to the item that is meant."""

import pytest

from llmrec.data.catalog import Catalog
from llmrec.decoding.grounding import Grounder

CATALOG = Catalog(
    item_ids=("1", "2", "3", "4"),
    titles=("The Matrix (1999)", "Amélie", "Heat (1995)", "Heat (1986)"),
    raw_titles=("Matrix, The (1999)", "Amélie", "Heat", "Heat"),
)


@pytest.mark.parametrize(
    ("entry", "position", "how"),
    [
        ("3", 2, "item_id"),
        ("The Matrix (1999)", 0, "exact"),
        ("Matrix, The (1999)", 0, "exact"),
        ("the matrix 1999", 0, "normalised"),
        ("AMELIE", 1, "normalised"),
        ("The Matrx (1999)", 0, "fuzzy"),
        ("Heat", -1, "unknown"),
        ("Completely different", -1, "unknown"),
        ("", -1, "unknown"),
    ],
)
def test_ground(entry, position, how):
    [found] = Grounder(CATALOG).ground([entry])
    assert (found.position, found.how) == (position, how)


NUMERIC = Catalog(
    item_ids=("3", "8", "300", "12"),
    titles=("8", "Alien", "300", "12 Monkeys (1995)"),
    raw_titles=("8", "Alien", "300", "Twelve Monkeys (1995)"),
)


@pytest.mark.parametrize(
    ("entry", "position", "how"),
    [
        ("8", -1, "ambiguous"),
        ({"id": "8"}, 1, "item_id"),
        ({"title": "8"}, 0, "exact"),
        ("300", 2, "item_id"),
        ("12", 3, "item_id"),
        (" 12.0 ", 3, "item_id"),
        ({"id": "12.0"}, 3, "item_id"),
        ({"id": "Alien"}, -1, "unknown"),
        ({"title": "3"}, -1, "unknown"),
        ({"title": "alien"}, 1, "normalised"),
    ],
)
def test_a_title_that_is_another_items_id_is_told_apart(entry, position, how):
    [found] = Grounder(NUMERIC).ground([entry])
    assert (found.position, found.how) == (position, how)
    assert found.positions == ((1, 0) if how == "ambiguous" else None)


def test_an_unknown_entry_names_the_nearest_title():
    [found] = Grounder(CATALOG).ground(["Heat wave 1995"])
    assert found.nearest == "Heat (1995)"
