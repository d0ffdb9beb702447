"""Passes at fixed shapes give what passes of any shape give, batch after batch."""

import gc
import weakref
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.profiler import profile

from llmrec.decoding import fixed_steps
from llmrec.decoding.beam import Scoring, beam_search, certified_search
from llmrec.decoding.beginning import beginning_of
from llmrec.decoding.best_first import best_first
from llmrec.decoding.candidates import candidate_scores
from llmrec.decoding.fixed_steps import FixedSteps, rounded
from llmrec.decoding.free import free_beam_search
from llmrec.decoding.likelihood import path_scores
from llmrec.decoding.open_items import OpenItems
from llmrec.decoding.shared_prompt import SharedPrompt
from llmrec.errors import RecipeError
from llmrec.model.graphs import graphs_on
from llmrec.text.trie import TitleTrie

RNG = np.random.default_rng(2)
TITLES = [np.array([*RNG.integers(3, 9, RNG.integers(1, 6)), 0], np.int32) for _ in range(40)]
TRIE = TitleTrie.from_sequences(TITLES)
SIZES = (4, 4, 2, 4, 1)  # users of the batches


def drawn(sizes=SIZES, longest=30):
    """Prompts of several batches."""
    rng = np.random.default_rng(5)
    return [
        [rng.integers(10, 300, rng.integers(1, longest)).astype(np.int32) for _ in range(size)]
        for size in sizes
    ]


def close(some, others):
    """Whether a few rounding steps of float32 at most lie between them."""
    torch.testing.assert_close(some, others, atol=2e-4, rtol=1e-4)


@contextmanager
def shapes_read(model):
    """Notes (rows, columns) of each pass of the model."""
    read = []
    embedding = model.get_input_embeddings()
    handle = embedding.register_forward_hook(lambda _, given, __: read.append((*given[0].shape,)))
    try:
        yield read
    finally:
        handle.remove()


def tree_passes(users, widths, seed):
    """Arguments of `read` in turn: each new token hangs on the prompt or on an earlier token."""
    rng = np.random.default_rng(seed)
    paths = [np.zeros((users, 0, 0), bool)]
    for width in widths:
        before = paths[-1].shape[2]
        grown = np.zeros((users, before + width, before + width), bool)
        grown[:, :before, :before] = paths[-1]
        for user in range(users):
            for token in range(before, before + width):
                parent = rng.integers(-1, token)
                if parent >= 0:
                    grown[user, token] = grown[user, parent]
                grown[user, token, token] = True
        paths.append(grown)
        sees = grown[:, before:]
        at = np.flatnonzero(rng.random(users * width) < 0.7)
        yield rng.integers(10, 300, (users, width)), sees.sum(axis=2) - 1, sees, at


def test_every_pass_reads_as_without_fixed_shapes(tiny_model):
    steps = FixedSteps(tiny_model)
    for seed, prompts in enumerate(drawn()):
        plain = SharedPrompt(tiny_model, prompts)
        fixed = SharedPrompt(tiny_model, prompts, steps=steps)
        assert torch.equal(fixed.logits, plain.logits)
        for widths in ((1, 5, 8), (9, 3, 17), (40, 2)):
            for arguments in tree_passes(len(prompts), widths, seed):
                expected = plain.read(*arguments)
                assert expected.shape == (len(arguments[3]), plain.logits.shape[1])
                close(fixed.read(*arguments), expected)
            plain.restart()
            fixed.restart()


def searches(model, prompts, seed, steps=None):
    """What every kind of search finds, one after the other behind the same prompts."""
    rng = np.random.default_rng(seed)
    beginning = beginning_of(model, prompts)
    shared = SharedPrompt(model, prompts, beginning, steps)
    closed = [np.sort(rng.permutation(len(TITLES))[:5]).astype(np.int32) for _ in prompts]
    asked = OpenItems(TRIE, closed)
    targets = [int(rng.choice(np.setdiff1d(np.arange(len(TITLES)), c))) for c in closed]
    among = np.stack([rng.permutation(len(TITLES))[:12] for _ in prompts])
    lists, numbers = [], []
    for renormalise in (True, False):
        scoring = Scoring(renormalise)
        lists += beam_search(shared, asked, beams=4, top_k=4, scoring=scoring)
        lists += best_first(shared, asked, top_k=5, scoring=scoring, expand=3).rankings
        lists += certified_search(shared, asked, beams=1, top_k=1, scoring=scoring, widest=40)
        numbers.append(candidate_scores(shared, TITLES, among, renormalise).ravel())
        numbers.append(path_scores(shared, TITLES, targets, asked).nll())
    free = free_beam_search(shared, beams=3, end=0, max_new_tokens=6)
    numbers.append(np.array([answer.score for mine in free for answer in mine]))
    found = [ranking.positions.tolist() for ranking in lists]
    found += [answer.tokens.tolist() for mine in free for answer in mine]
    return found, np.concatenate([*(ranking.scores for ranking in lists), *numbers])


def test_every_search_finds_the_same_in_batches_in_turn(tiny_model):
    steps = FixedSteps(tiny_model)
    for seed, prompts in enumerate([*drawn(), *drawn((3,), longest=120)]):
        expected, numbers = searches(tiny_model, prompts, seed)
        found, mine = searches(tiny_model, prompts, seed, steps)
        assert found == expected
        np.testing.assert_allclose(mine, numbers, rtol=1e-5, atol=1e-4)


def test_a_room_grows_with_what_stands_in_it(tiny_llama, monkeypatch):
    monkeypatch.setattr(fixed_steps, "BEHIND", 1)
    [prompts] = drawn((3,))
    plain = SharedPrompt(tiny_llama, prompts)
    fixed = SharedPrompt(tiny_llama, prompts, steps=FixedSteps(tiny_llama))
    with shapes_read(tiny_llama) as read:
        for arguments in tree_passes(3, (20, 30, 60, 5, 150, 7), seed=1):
            close(fixed.read(*arguments), plain.read(*arguments))
    assert sum(columns for _, columns in read) > 256 * 2
    part = fixed.of(np.array([2]))  # the prompt is still what it was
    assert torch.equal(part.logits, plain.logits[2:])
    arguments = next(tree_passes(1, (6,), seed=2))
    close(part.read(*arguments), plain.of(np.array([2])).read(*arguments))


def test_only_the_last_batch_can_be_read(tiny_llama):
    steps = FixedSteps(tiny_llama)
    [first, second] = drawn((2, 2))
    older = SharedPrompt(tiny_llama, first, steps=steps)
    rows = older.of(np.array([1]))  # a copy of its own
    newer = SharedPrompt(tiny_llama, second, steps=steps)
    arguments = next(tree_passes(2, (4,), seed=3))
    for use in (lambda: older.read(*arguments), lambda: older.of(np.array([0]))):
        with pytest.raises(RuntimeError, match="gave their memory to a later batch"):
            use()
    close(newer.read(*arguments), SharedPrompt(tiny_llama, second).read(*arguments))
    arguments = next(tree_passes(1, (4,), seed=3))
    close(rows.read(*arguments), SharedPrompt(tiny_llama, first[1:]).read(*arguments))


def test_logits_are_the_callers_to_keep(tiny_llama):
    [prompts] = drawn((2,))
    fixed = SharedPrompt(tiny_llama, prompts, steps=FixedSteps(tiny_llama))
    one, other = (next(tree_passes(2, (5,), seed)) for seed in (1, 2))
    kept = fixed.read(*one[:3], np.arange(9))
    copy = kept.clone()
    assert not torch.equal(fixed.read(*other[:3], np.arange(9)), copy)
    assert torch.equal(kept, copy)


def test_few_shapes_are_read_and_smaller_batches_ride_along(tiny_llama):
    steps = FixedSteps(tiny_llama)
    rows = []
    for prompts in drawn((8, 8, 3, 1, 8)):
        shared = SharedPrompt(tiny_llama, prompts, steps=steps)
        with shapes_read(tiny_llama) as read:
            for width in range(1, 65):
                for arguments in tree_passes(len(prompts), (width,), seed=width):
                    shared.read(*arguments)
        rows.append({users for users, _ in read})
        assert {columns for _, columns in read} == {8, 16, 24, 32, 40, 48, 56, 64}
    # One user alone is too few for a room of eight.
    assert rows == [{8}, {8}, {8}, {1}, {8}]


def test_what_is_rounded_is_little_more_and_of_few_kinds():
    found = [rounded(count) for count in range(1, 1025)]
    for count, wide in enumerate(found, 1):
        assert wide % 8 == 0
        assert count <= wide < max(count + 8, 1.25 * count)
    assert found == sorted(found)
    assert len(set(found)) == 8 + 4 * 4


def test_memory_goes_back_with_the_last_name(tiny_llama):
    [prompts] = drawn((2,))
    steps = FixedSteps(tiny_llama)
    shared = SharedPrompt(tiny_llama, prompts, steps=steps)
    shared.read(*next(tree_passes(2, (4,), seed=1)))
    room = weakref.ref(steps._room)
    keys = weakref.ref(room().layers[0][0])
    gc.disable()
    try:
        del shared, steps
        assert room() is None
        assert keys() is None
    finally:
        gc.enable()


# What a CUDA graph cannot hold: the host waits for a value or a shape, or hands over a number.
WAITING = {"aten::_local_scalar_dense", "aten::nonzero", "aten::equal", "aten::lift_fresh"}


def test_a_pass_asks_its_device_for_nothing(tiny_model, monkeypatch):
    ran = set()

    class Graphs:
        def captured(self, run):
            with profile() as watched:
                run()
            ran.update(event.key for event in watched.key_averages())
            return run

    monkeypatch.setattr(fixed_steps, "graphs_on", lambda *_: Graphs())
    searches(tiny_model, drawn((3,))[0], 1, FixedSteps(tiny_model))
    assert "aten::index_copy_" in ran
    assert not ran & WAITING


def test_a_shape_is_captured_once_and_then_replayed(tiny_llama, monkeypatch):
    """With graphs that do as CUDA's: they hold what they were captured with, and no Python."""
    log = []

    class Graphs:
        def captured(self, run):
            log.append("captured")
            return lambda: log.append("replayed") or run()

    monkeypatch.setattr(fixed_steps, "graphs_on", lambda *_: Graphs())
    steps = FixedSteps(tiny_llama)
    for prompts in drawn((3, 3)):
        shared = SharedPrompt(tiny_llama, prompts, steps=steps)
        plain = SharedPrompt(tiny_llama, prompts)
        for widths in ((5, 6), (7, 7)):
            for arguments in tree_passes(3, widths, seed=1):
                arguments = (*arguments[:3], np.arange(9))
                close(shared.read(*arguments), plain.read(*arguments))
            shared.restart()
            plain.restart()
    assert log == ["captured", *["replayed"] * 7]


@pytest.fixture
def fake_cuda(monkeypatch):
    """torch.cuda's graphs without a GPU; what runs while one captures is noted or fails."""
    state = SimpleNamespace(stream="main", ran=[], failure=None)

    @contextmanager
    def stream(name):
        before, state.stream = state.stream, name
        try:
            yield
        finally:
            state.stream = before

    @contextmanager
    def graph(made, pool, stream, capture_error_mode):
        assert (state.stream, pool, capture_error_mode) == (stream, "pool", "thread_local")
        state.stream = "capturing"  # and torch leaves it so where a capture breaks off
        yield
        if state.failure is not None:
            raise state.failure
        state.stream = stream

    made = SimpleNamespace(wait_stream=lambda other: state.ran.append(f"waits for {other}"))
    monkeypatch.setattr(torch.cuda, "Stream", lambda _: made)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: "main")
    monkeypatch.setattr(torch.cuda, "stream", stream)
    monkeypatch.setattr(torch.cuda, "graph", graph)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: "pool")
    replay = SimpleNamespace(replay=lambda: state.ran.append("replay"))
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: replay)
    return state, made


def run_in(state, made):
    return lambda: state.ran.append("warm" if state.stream is made else state.stream)


def test_a_capture_warms_up_on_its_own_stream(fake_cuda):
    state, made = fake_cuda
    again = graphs_on(torch.device("cuda"), "decode.cuda_graphs").captured(run_in(state, made))
    again()
    assert state.ran == ["waits for main", "warm", "warm", "capturing", "replay"]
    assert state.stream == "main"
    assert graphs_on(torch.device("cpu"), "decode.cuda_graphs") is None


@pytest.mark.parametrize(
    ("failure", "raised", "match"),
    [
        (
            RuntimeError("operation not permitted when stream is capturing\nmore"),
            RecipeError,
            r"not permitted when stream is capturing\); set decode.cuda_graphs=false",
        ),
        (torch.OutOfMemoryError("no memory"), torch.OutOfMemoryError, "no memory"),
    ],
)
def test_a_capture_that_fails_says_what_to_set(fake_cuda, failure, raised, match):
    state, made = fake_cuda
    state.failure = failure
    with pytest.raises(raised, match=match):
        graphs_on(torch.device("cuda"), "decode.cuda_graphs").captured(run_in(state, made))
    assert state.stream == "main"
