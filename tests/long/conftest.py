"""Long runs: how many rounds, and a run with a file of every kind."""

import os

import pytest

from llmrec.recipe.loading import dump

SHARE = float(os.environ.get("ROUNDS") or 1)


def rounds(count):
    """How many of so many rounds are run; ROUNDS=0.1 takes a tenth of them."""
    return max(1, round(count * SHARE))


@pytest.fixture
def written(tmp_path):
    """A function that writes a recipe to a file of its name; the file."""

    def write(recipe):
        path = tmp_path / f"{recipe.name}.yaml"
        path.write_text(dump(recipe), "utf-8")
        return path

    return write


@pytest.fixture
def histories(tmp_path):
    """A file of 12 histories."""
    path = tmp_path / "histories.jsonl"
    titles = ["The Man", "The Man II", "Dark City", "Love", "Blue", "Red"]
    lines = [f'{{"user": "h{n}", "history": ["{titles[n % 6]}"]}}' for n in range(12)]
    path.write_text("\n".join(lines) + "\n", "utf-8")
    return path
