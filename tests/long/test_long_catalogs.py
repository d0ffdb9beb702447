"""1,000 random catalogs with prefix and duplicate titles through constrained search: every open
item is reached and no other."""

import numpy as np
import pytest

from llmrec.decoding.beam import Scoring, beam_search
from llmrec.decoding.best_first import best_first
from llmrec.decoding.open_items import OpenItems
from llmrec.decoding.shared_prompt import SharedPrompt
from llmrec.text.trie import TitleTrie
from tests.long.conftest import rounds

pytestmark = pytest.mark.long
PROMPT = np.array([20, 21, 22], np.int32)


def test_random_catalogs(tiny_llama):
    rng, prefixes, equal = np.random.default_rng(0), 0, 0
    for number in range(rounds(1000)):
        sequences = [
            [*rng.integers(3, 8, rng.integers(1, 5)).tolist(), 0]
            for _ in range(rng.integers(1, 40))
        ]
        for base in sequences[:3]:  # a title that is the beginning of another, and an equal one
            sequences += [[*base[:-1], int(rng.integers(3, 8)), 0], list(base)]
        prefixes += len(sequences[:3])
        equal += len(sequences) - len(set(map(tuple, sequences)))
        closed = np.flatnonzero(rng.random(len(sequences)) < 0.2).astype(np.int32)
        expected = sorted(set(range(len(sequences))) - set(closed.tolist()))
        prompt, open_items = (
            SharedPrompt(tiny_llama, [PROMPT]),
            OpenItems(TitleTrie.from_sequences(sequences), [closed]),
        )
        scoring = Scoring(bool(number % 2))
        if number % 4 == 0:
            found = best_first(prompt, open_items, top_k=128, scoring=Scoring(True), most=10**6)
            [ranking] = found.rankings
        else:
            [ranking] = beam_search(prompt, open_items, beams=128, top_k=128, scoring=scoring)
        assert sorted(ranking.positions.tolist()) == expected, number
    print(f"\n{rounds(1000)} catalogs, {prefixes} titles that begin others, {equal} equal ones")
