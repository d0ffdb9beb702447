"""One changed bit of what a run holds: told by file and by what makes it again, and never counted
with."""

import pytest

from llmrec.errors import DataError
from llmrec.stages import evaluate, recommend


def flip(path):
    """Change one bit in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


def test_a_flipped_bit_is_told_and_what_it_was_in_is_made_again(recipe_of):
    recipe, folder = recipe_of("systems=[popularity, markov]")
    recommend.run(recipe, folder)
    files = [folder.items, folder.interactions, folder.examples("test"), folder.examples("train")]
    for path in (*files, folder.predictions("markov")):
        whole = path.read_bytes()
        flip(path)
        with pytest.raises(DataError, match=f"{path.name} is damaged"):
            evaluate.run(recipe, folder)
        recommend.run(recipe, folder)  # prepares and recommends again what is damaged
        evaluate.run(recipe, folder)
        if path in files:
            assert path.read_bytes() == whole
