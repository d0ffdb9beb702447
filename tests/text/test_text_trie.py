"""The TitleTrie against a dict of prefixes."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmrec.text.trie import TitleTrie, UnreachablePrefixError

SEQUENCES = st.lists(
    st.lists(st.integers(0, 3) | st.integers(0, 70_000), min_size=1, max_size=7),
    min_size=1,
    max_size=30,
)


def continuations(sequences):
    allowed = {(): set()}
    for sequence in sequences:
        for end in range(len(sequence) + 1):
            allowed.setdefault(tuple(sequence[:end]), set())
            if end < len(sequence):
                allowed[tuple(sequence[:end])].add(sequence[end])
    return allowed


@settings(max_examples=300, deadline=None)
@given(SEQUENCES)
def test_allowed_equals_a_dict_of_prefixes(sequences):
    trie = TitleTrie.from_sequences(sequences)
    for prefix, expected in continuations(sequences).items():
        assert trie.allowed(prefix).tolist() == sorted(expected)


@settings(max_examples=200, deadline=None)
@given(SEQUENCES)
def test_a_node_knows_the_items_below_and_those_that_end_there(sequences):
    trie = TitleTrie.from_sequences(sequences)
    for prefix in continuations(sequences):
        node = trie.walk(prefix)[-1]
        below = [i for i, s in enumerate(sequences) if tuple(s[: len(prefix)]) == prefix]
        (low,), (high,) = trie.below(np.array([node]))
        assert sorted(trie.items[low:high]) == below
        assert trie.child_count(np.array([node])) == len(trie.allowed(prefix))
        assert trie.items_at(node).tolist() == [
            i for i, s in enumerate(sequences) if tuple(s) == prefix
        ]
    assert trie.items[trie.rank].tolist() == list(range(len(sequences)))


def test_children_of_many_nodes_come_end_to_end():
    trie = TitleTrie.from_sequences([[5, 1], [5, 2], [7], [5, 1, 9]])
    five, seven = trie.walk([5])[-1], trie.walk([7])[-1]
    children, owner = trie.children_of(np.array([0, seven, five]))
    assert trie.tokens[children].tolist() == [5, 7, 1, 2]
    assert owner.tolist() == [0, 0, 2, 2]


def test_an_unreachable_prefix_raises_and_names_itself():
    trie = TitleTrie.from_sequences([[1, 2]])
    with pytest.raises(UnreachablePrefixError, match=r"\[1, 3\]"):
        trie.allowed([1, 3, 4])
    with pytest.raises(UnreachablePrefixError):
        trie.allowed([1, 2, 3])


@pytest.mark.parametrize(
    ("sequences", "message"), [([], "none"), ([[1], []], "sequence 1"), ([[1, -2]], "negative")]
)
def test_what_is_no_trie_is_refused(sequences, message):
    with pytest.raises(ValueError, match=message):
        TitleTrie.from_sequences(sequences)


def test_one_sequence_is_one_path():
    trie = TitleTrie.from_sequences([[3, 3, 3]])
    assert [trie.allowed([3] * n).tolist() for n in range(4)] == [[3], [3], [3], []]
