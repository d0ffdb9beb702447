"""The TitleTrie against a dict of prefixes."""

from dataclasses import fields

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmrec.text import trie_building
from llmrec.text.trie import TREE_ROOT, TitleTrie, UnreachablePrefixError

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


def random_catalog(seed):
    """A few short sequences over few tokens: chains, duplicates and prefixes of each other."""
    rng = np.random.default_rng(seed)
    alphabet, longest = rng.integers(1, 5), rng.integers(1, 8)
    lengths = rng.integers(1, longest + 1, rng.integers(1, 13))
    sequences = [rng.integers(0, alphabet, length).tolist() for length in lengths]
    if rng.random() < 0.5:
        sequences = [[*s, alphabet] for s in sequences]  # each closed by an end token
    return sequences


def arrays(trie):
    return {field.name: getattr(trie, field.name) for field in fields(trie)}


def assert_same(one, other):
    for name, array in arrays(one).items():
        np.testing.assert_array_equal(array, getattr(other, name), err_msg=name)


def flat(sequences):
    lengths = [0, *(len(s) for s in sequences)]
    return np.concatenate(sequences).astype(np.int32), np.cumsum(lengths)


def assert_equals_a_dict(sequences):
    trie, allowed = TitleTrie.from_sequences(sequences), continuations(sequences)
    whole = [tuple(s) for s in sequences]
    prefixes = list(allowed)
    node_of = {prefix: int(trie.walk(prefix)[-1]) for prefix in prefixes}
    nodes = np.array([node_of[prefix] for prefix in prefixes])
    assert sorted(nodes) == list(range(len(trie.tokens)))  # no other node, none shared
    assert node_of[()] == TREE_ROOT
    low, high = trie.below(nodes)
    count, chain_end = trie.child_count(nodes), trie.chain_end(nodes)
    children, owner = trie.children_of(nodes)
    expected_children = [
        (b, node_of[(*prefix, token)])
        for b, prefix in enumerate(prefixes)
        for token in sorted(allowed[prefix])
    ]
    assert list(zip(owner.tolist(), children.tolist(), strict=True)) == expected_children
    for b, prefix in enumerate(prefixes):
        assert trie.allowed(prefix).tolist() == sorted(allowed[prefix])
        assert count[b] == len(allowed[prefix])
        below = [i for i, s in enumerate(whole) if s[: len(prefix)] == prefix]
        assert sorted(trie.items[low[b] : high[b]]) == below
        ending = [i for i, s in enumerate(whole) if s == prefix]
        assert trie.items_at(node_of[prefix]).tolist() == ending
        forced = prefix
        while len(allowed[forced]) == 1 and forced not in whole:
            forced = (*forced, *allowed[forced])
        assert chain_end[b] == node_of[forced]
        forced_tokens = trie.tokens[nodes[b] + 1 : chain_end[b] + 1]
        assert (*prefix, *forced_tokens.tolist()) == forced
    assert [whole[i] for i in trie.items] == sorted(whole)
    assert trie.items[trie.rank].tolist() == list(range(len(sequences)))
    assert len(trie) == len(whole)


@pytest.mark.parametrize("first_seed", range(0, 2_000, 200))
def test_every_prefix_of_random_catalogs_equals_a_dict(first_seed, monkeypatch):
    monkeypatch.setattr(trie_building, "_BLOCK", 3 + first_seed)  # tokens are copied in parts
    for seed in range(first_seed, first_seed + 200):
        assert_equals_a_dict(random_catalog(seed))


@settings(max_examples=100, deadline=None)
@given(SEQUENCES)
def test_every_prefix_equals_a_dict(sequences):
    assert_equals_a_dict(sequences)


@settings(max_examples=50, deadline=None)
@given(SEQUENCES)
def test_a_flat_catalog_equals_its_sequences(sequences):
    trie = TitleTrie.from_sequences(sequences)
    assert_same(TitleTrie.from_flat(*flat(sequences)), trie)
    assert_same(TitleTrie.from_sequences([np.array(s, np.int32) for s in sequences]), trie)
    assert all(array.dtype == np.int32 for array in arrays(trie).values())


def test_what_is_shared_or_forced_is_stored_once():
    trie = TitleTrie.from_sequences([[4, 4, 1, 2, 3], [4, 4, 9, 2, 3], [4, 4, 1, 2, 3]])
    assert trie.tokens.tolist() == [-1, 4, 4, 1, 2, 3, 9, 2, 3]
    assert trie.begin.tolist() == [0, 3, 6, 9]
    assert trie.chain_end(np.array([0, 1, 2, 3, 7, 8])).tolist() == [2, 2, 2, 5, 8, 8]


def test_titles_of_28_tokens_take_at_most_150_bytes():
    rng = np.random.default_rng(0)
    tokens = rng.integers(1, 2, (4_000, 28))
    tokens[:, 1:8] = rng.integers(1, 5, (4_000, 7))  # paths part here, again and again
    tokens[:, 8] = np.arange(4_000)
    trie = TitleTrie.from_flat(tokens.ravel(), np.arange(4_001) * 28)
    assert sum(array.nbytes for array in arrays(trie).values()) <= 150 * 4_000


def test_many_groups_of_high_tokens_are_sorted_too():
    rng = np.random.default_rng(1)  # group, token and row do not fit one integer here
    first, second = np.arange(200_000) // 2, rng.integers(0, 2**31 - 1, 200_000)
    trie = TitleTrie.from_flat(np.stack([first, second], 1).ravel(), np.arange(200_001) * 2)
    np.testing.assert_array_equal(trie.items, np.lexsort((second, first)))


def test_equal_titles_stand_lowest_first_whatever_their_number():
    second = np.random.default_rng(2).integers(0, 2, 1_000)
    trie = TitleTrie.from_sequences([[5, int(token)] for token in second])
    for token in (0, 1):
        ending = trie.items_at(int(trie.walk([5, token])[-1]))
        assert ending.tolist() == np.flatnonzero(second == token).tolist()


def test_children_of_many_nodes_come_end_to_end():
    trie = TitleTrie.from_sequences([[5, 1], [5, 2], [7], [5, 1, 9]])
    five, seven = trie.walk([5])[-1], trie.walk([7])[-1]
    children, owner = trie.children_of(np.array([0, seven, five]))
    assert trie.tokens[children].tolist() == [5, 7, 1, 2]
    assert owner.tolist() == [0, 0, 2, 2]


@pytest.mark.parametrize(
    ("prefix", "named"),
    [
        ([1, 3, 4], r"\[1, 3\]"),
        ([1, 2, 3], r"\[1, 2, 3\]"),
        ([0], r"\[0\]"),
        ([9], r"\[9\]"),
        ([5, 8], r"\[5, 8\]"),
        ([-1], r"\[-1\]"),
        ([1, 2, -1], r"\[1, 2, -1\]"),
    ],
)
def test_an_unreachable_prefix_raises_and_names_itself(prefix, named):
    trie = TitleTrie.from_sequences([[1, 2], [5, 6], [5, 7], [5]])
    with pytest.raises(UnreachablePrefixError, match=named):
        trie.allowed(prefix)


@pytest.mark.parametrize(
    ("sequences", "message"), [([], "none"), ([[1], []], "sequence 1"), ([[1, -2]], "negative")]
)
def test_what_is_no_trie_is_refused(sequences, message):
    with pytest.raises(ValueError, match=message):
        TitleTrie.from_sequences(sequences)


@pytest.mark.parametrize(
    ("tokens", "offsets", "message"),
    [
        ([1, 2], [0], "none"),
        ([1, 2], [0, 1], "end at 2"),
        ([1, 2], [1, 2], "start at 0"),
        ([1, 2], [0, 2, 2], "sequence 1"),
        ([1, 2], [0, 2, 1, 2], "sequence 1"),
        ([1, 2**31], [0, 2], "not below"),
        ([1, -1], [0, 2], "negative"),
    ],
)
def test_a_flat_form_that_is_none_is_refused(tokens, offsets, message):
    with pytest.raises(ValueError, match=message):
        TitleTrie.from_flat(np.array(tokens), np.array(offsets))


def test_more_tokens_than_int32_counts_are_refused(monkeypatch):
    monkeypatch.setattr(trie_building, "LIMIT", 6)
    assert len(TitleTrie.from_sequences([[1, 2, 3], [1, 2, 3], [1, 4, 5]]).tokens) == 6
    with pytest.raises(ValueError, match="have 6 tokens"):
        TitleTrie.from_sequences([[1, 2, 3], [1, 4, 5, 6]])


def test_one_sequence_is_one_path():
    trie = TitleTrie.from_sequences([[3, 3, 3]])
    assert [trie.allowed([3] * n).tolist() for n in range(4)] == [[3], [3], [3], []]
