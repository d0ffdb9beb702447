"""The Engine answers what plain calls in its batches answer, to the bit, and processes share it."""

from contextlib import suppress
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from llmrec.decoding.beam import Scoring, beam_search, certified_search
from llmrec.decoding.beginning import beginning_of
from llmrec.decoding.best_first import best_first
from llmrec.decoding.candidates import candidate_ranking, candidate_scores
from llmrec.decoding.fixed_steps import FixedSteps
from llmrec.decoding.free import free_beam_search
from llmrec.decoding.likelihood import path_scores
from llmrec.decoding.open_items import OpenItems
from llmrec.decoding.shared_prompt import Head, SharedPrompt
from llmrec.errors import RecipeError
from llmrec.inference import engine as module
from llmrec.inference.engine import Engine, closed_items, plan_of
from llmrec.model.loading import Lora, adapter_off, with_new_lora
from llmrec.recipe import shipped
from llmrec.recipe.decoding import Decode
from llmrec.runs import processes as group
from llmrec.text.encoding import PromptEncoder
from llmrec.text.templates import PromptTemplate

TITLES = [
    "The Man",
    "The Man II",
    "The Man III",
    "Dark City",
    "Dark Star",
    "A Star",
    "Last Summer",
    "Last Dance",
    "Love",
    "River: the End",
    "Blue",
    "Red",
]
RNG = np.random.default_rng(3)
HISTORIES = [RNG.permutation(len(TITLES))[: RNG.integers(1, 6)].astype(np.int32) for _ in range(7)]
TARGETS = np.array(
    [RNG.choice(np.setdiff1d(np.arange(len(TITLES)), h)) for h in HISTORIES], np.int32
)
CANDIDATES = np.stack(
    [
        RNG.permutation([t, *RNG.permutation(np.setdiff1d(range(len(TITLES)), t))[:4]])
        for t in TARGETS
    ]
).astype(np.int32)
GUIDE = RNG.dirichlet(np.ones(len(TITLES)), len(HISTORIES))


@pytest.fixture(scope="session")
def encoder(tokenizer):
    template = PromptTemplate(shipped.prompt_text("next_item/movie"), "next_item/movie")
    return PromptEncoder(template, tokenizer, TITLES)


@pytest.fixture(scope="session")
def prompts(encoder):
    """As long a beginning as an instruction, so that it is worth a pass of its own."""
    instruction = np.arange(40, 70, dtype=np.int32)
    return [np.concatenate([instruction, encoder.prompt(history).ids]) for history in HISTORIES]


def decode(**settings):
    return Decode.model_validate({"top_k": 4, "batch_size": 3} | settings)


def batches_of(prompts, size=3):
    """Longest first, as they stand where equally long."""
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
    return [order[i : i + size] for i in range(0, len(order), size)]


def loop(model, prompts, ask, head=None):
    """What the engine replaces: a loop over batches, the common beginning read before it."""
    beginning, found = beginning_of(model, prompts), {}
    for batch in batches_of(prompts):
        shared = SharedPrompt(model, [prompts[i] for i in batch], beginning, head=head)
        found |= zip(batch, ask(shared, batch), strict=True)
    return [found[i] for i in range(len(prompts))]


def plain(ranking):
    return ranking.positions.tolist(), ranking.scores.tolist(), ranking.certified


def searched(kind, shared, open_items, scoring):
    if kind == "best_first":
        return best_first(shared, open_items, top_k=4, scoring=scoring, most=2048).rankings
    if kind == "certified":
        return certified_search(shared, open_items, beams=10, top_k=4, scoring=scoring, widest=640)
    return beam_search(shared, open_items, beams=10, top_k=4, scoring=scoring)


@pytest.mark.parametrize("kind", ["beam", "certified", "best_first"])
@pytest.mark.parametrize("weight", [1.0, 0.3])
@pytest.mark.parametrize("filter_seen", [True, False])
def test_lists_and_likelihoods_are_those_of_the_search_in_the_same_batches(
    tiny_llama, encoder, prompts, kind, weight, filter_seen
):
    closed = closed_items(HISTORIES, filter_seen)
    q = GUIDE if weight < 1 else None

    def ask(shared, batch):
        part = None if q is None else q[batch]
        open_items = OpenItems(encoder.trie, [closed[i] for i in batch], part)
        lists = searched(kind, shared, open_items, Scoring(True, weight))
        paths = path_scores(shared, encoder.completions, TARGETS[batch].tolist(), open_items)
        return zip(map(plain, lists), paths.nll(weight).tolist(), strict=True)

    head = Head.of(encoder.trie.tokens[1:], torch.device("cpu"))
    expected = loop(tiny_llama, prompts, ask, head)
    engine = Engine(tiny_llama, encoder, decode(search=kind))
    found = engine.rank(prompts, closed, targets=TARGETS, probabilities=q, weight=weight)
    assert [*zip(map(plain, found.rankings), found.nll.tolist(), strict=True)] == expected
    if q is None:
        apart = engine.nll(prompts, closed, TARGETS)
        np.testing.assert_array_equal(apart, found.nll)
    paths = dict.fromkeys(range(len(prompts)))
    for batch, scores in engine.paths(prompts, closed, TARGETS, q):
        paths |= zip(batch.tolist(), scores.nll(weight).tolist(), strict=True)
    assert list(paths.values()) == found.nll.tolist()
    alone = engine.rank(
        prompts[2:3],
        closed[2:3],
        targets=TARGETS[2:3],
        probabilities=None if q is None else q[2:3],
        weight=weight,
    )
    assert alone.rankings[0].positions.tolist() == found.rankings[2].positions.tolist()
    np.testing.assert_allclose(alone.nll, found.nll[2], rtol=1e-4)
    shorter = engine.rank(prompts, closed, 2, probabilities=q, weight=weight)
    assert [len(ranking.positions) for ranking in shorter.rankings] == [2] * len(prompts)
    assert np.isnan(shorter.nll).all()


@pytest.mark.parametrize("renormalise", [True, False])
def test_candidates_are_chosen_as_in_the_same_batches(tiny_llama, encoder, prompts, renormalise):
    def ask(shared, batch):
        scores = candidate_scores(shared, encoder.completions, CANDIDATES[batch], renormalise)
        rows = zip(CANDIDATES[batch], scores, strict=True)
        return [(plain(candidate_ranking(*row)), row[1].tolist()) for row in rows]

    expected = loop(tiny_llama, prompts, ask)
    found = Engine(tiny_llama, encoder, decode(renormalise=renormalise)).choose(
        prompts, CANDIDATES, TARGETS
    )
    assert [plain(ranking) for ranking in found.rankings] == [lists for lists, _ in expected]
    places = (TARGETS[:, None] == CANDIDATES).argmax(axis=1)
    for nll, place, (_, scores) in zip(found.nll, places, expected, strict=True):
        share = np.exp(scores[place]) / np.exp(scores).sum()
        assert nll == pytest.approx(-np.log(share), rel=1e-6)


def test_what_is_written_is_what_the_search_writes_in_the_same_batches(
    tiny_llama, encoder, prompts
):
    end = encoder.tokenizer.eos_token_id

    def ask(shared, _):
        return free_beam_search(shared, beams=2, end=end, max_new_tokens=5)

    def bare(answers):
        return [[(w.tokens.tolist(), w.score) for w in beams] for beams in answers]

    engine = Engine(tiny_llama, encoder, decode())
    assert bare(engine.write(prompts, 2, 5)) == bare(loop(tiny_llama, prompts, ask))
    together = [np.array([4, 1]), np.array([0, 2, 3, 5, 6])]
    apart = [
        (batch, ask(SharedPrompt(tiny_llama, [prompts[i] for i in batch]), batch))
        for batch in together
    ]
    expected = [None] * len(prompts)
    for batch, answers in apart:
        for i, beams in zip(batch.tolist(), bare(answers), strict=True):
            expected[i] = beams
    assert bare(engine.write(prompts, 2, 5, together)) == expected


@pytest.fixture
def passes(tiny_llama):
    """(rows, columns) of each pass of the model, as they come."""
    seen = []

    def note(_, given, __):
        seen.append(tuple(given[0].shape))

    handle = tiny_llama.get_input_embeddings().register_forward_hook(note)
    yield seen
    handle.remove()


def test_a_list_is_cut_by_users_and_by_tokens(tiny_llama, encoder, prompts, passes):
    longest = max(map(len, prompts))
    settings = decode(batch_size=3, batch_tokens=2 * longest)
    plan = plan_of(prompts, settings)
    assert len(plan[0]) == 2, "three of the longest are too many tokens"
    assert sorted(np.concatenate(plan).tolist()) == list(range(len(prompts)))
    Engine(tiny_llama, encoder, settings).nll(prompts, HISTORIES, TARGETS)
    rows = [shape[0] for shape in passes]
    assert rows[0] == 1, "the beginning of all"
    assert set(rows[1:]) == {len(batch) for batch in plan}


def test_calls_about_some_of_the_prompts_begin_where_all_begin(
    tiny_llama, encoder, prompts, passes
):
    engine = Engine(tiny_llama, encoder, decode())
    whole = engine.rank(prompts, HISTORIES, targets=TARGETS)
    passes.clear()
    begun = engine.behind(iter(prompts))
    [beginning] = passes
    found = {}
    for batch in plan_of(prompts, decode()):
        some = batch.tolist()
        part = begun.rank(
            [prompts[i] for i in some], [HISTORIES[i] for i in some], targets=TARGETS[batch]
        )
        found |= zip(some, zip(part.rankings, part.nll.tolist(), strict=True), strict=True)
    assert passes.count(beginning) == 1, "read once for all calls"
    for i, (ranking, nll) in found.items():
        assert plain(ranking) == plain(whole.rankings[i])
        assert nll == whole.nll[i]


def test_fixed_passes_are_kept_from_call_to_call(tiny_llama, encoder, prompts, monkeypatch):
    made = []

    def fixed(model, settings):
        made.append(FixedSteps(model))
        return made[-1]

    plainly = Engine(tiny_llama, encoder, decode())
    monkeypatch.setattr(module, "_fixed_steps", fixed)
    engine = Engine(tiny_llama, encoder, decode(cuda_graphs=True))
    for _ in range(2):
        found = engine.rank(prompts, HISTORIES, targets=TARGETS)
        expected = plainly.rank(prompts, HISTORIES, targets=TARGETS)
        assert [r.positions.tolist() for r in found.rankings] == [
            r.positions.tolist() for r in expected.rankings
        ]
        np.testing.assert_allclose(found.nll, expected.nll, rtol=1e-4)
    engine.behind(prompts).write(prompts, 2, 4)
    assert len(made) == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_graphs_without_a_gpu_are_refused(tiny_llama, encoder):
    with pytest.raises(RecipeError, match=r"cuda_graphs: true needs a CUDA GPU, .* is on cpu"):
        Engine(tiny_llama, encoder, decode(cuda_graphs=True))


def test_an_untuned_engine_asks_with_the_adapter_off_and_leaves_it_on(
    fresh_llama, encoder, prompts
):
    lora = Lora(r=4, alpha=8, dropout=0.0, target_modules="all-linear")
    tuned = with_new_lora(fresh_llama, lora, 0).eval()
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.3, generator=torch.Generator().manual_seed(1))
    with adapter_off(tuned):
        expected = Engine(tuned, encoder, decode()).nll(prompts, HISTORIES, TARGETS)
    on = Engine(tuned, encoder, decode())
    off = Engine(tuned, encoder, decode(), untuned=True)
    before = on.nll(prompts, HISTORIES, TARGETS)
    assert not np.allclose(before, expected)
    np.testing.assert_array_equal(off.nll(prompts, HISTORIES, TARGETS), expected)
    begun = off.behind(prompts)
    between = []
    for _ in begun.paths(prompts, HISTORIES, TARGETS):
        between.append(on.nll(prompts[:1], HISTORIES[:1], TARGETS[:1])[0])
    np.testing.assert_allclose(between, before[0], rtol=1e-4)
    np.testing.assert_array_equal(on.nll(prompts, HISTORIES, TARGETS), before)


def in_turn(monkeypatch, count, ask):
    """What each of `count` processes answers, and what it gives to the others."""
    given, answers = [], []
    for rank in range(count):
        state = SimpleNamespace(num_processes=count, process_index=rank)
        for place in (group, module):
            monkeypatch.setattr(place, "processes", lambda state=state: state)
        monkeypatch.setattr(group, "gather_object", lambda mine: given.append(mine) or mine)
        with suppress(KeyError):  # the others' answers are missing
            ask()
    everything = [pair for mine in given for pair in mine]
    monkeypatch.setattr(group, "gather_object", lambda mine: everything)
    for rank in range(count):
        state = SimpleNamespace(num_processes=count, process_index=rank)
        for place in (group, module):
            monkeypatch.setattr(place, "processes", lambda state=state: state)
        answers.append(ask())
    return given, answers


# Two prompts that begin unlike all others, so that a share alone has another common beginning.
UNLIKE = [np.array([9, *RNG.integers(10, 200, 30)], np.int32) for _ in range(2)]


@pytest.mark.parametrize("count", [2, 3, 9])
@pytest.mark.parametrize("unlike", [False, True])
@pytest.mark.parametrize("what", ["nll", "choose"])
def test_processes_do_equally_many_passes_and_all_get_what_one_gets(
    tiny_llama, encoder, prompts, passes, monkeypatch, count, unlike, what
):
    asked = [*prompts[:5], *UNLIKE] if unlike else prompts
    # All targets of the longest prompts are closed: nothing is to be read behind these.
    batch = plan_of(asked, decode(batch_size=2))[0].tolist()
    closed = [
        np.append(h, TARGETS[i]).astype(np.int32) if i in batch else h
        for i, h in enumerate(HISTORIES)
    ]
    held = 2 * tiny_llama.config.vocab_size * 4  # logits of 4 columns of two users
    monkeypatch.setattr("llmrec.decoding.candidates.HELD", held)

    def ask(shared=True):
        engine = Engine(tiny_llama, encoder, decode(batch_size=2), shared=shared)
        passes.clear()
        if what == "nll":
            found = engine.nll(asked, closed, TARGETS)
        else:
            found = engine.choose(asked, CANDIDATES, TARGETS).nll
        done.append(len(passes))
        return found

    done = []
    expected = ask(shared=False)
    done.clear()
    given, answers = in_turn(monkeypatch, count, ask)
    assert len({*done[-count:]}) == 1, "equally many passes"
    each = -(-4 // count)  # 7 prompts are 4 batches
    assert [len({i for i, _ in mine}) <= 2 * each for mine in given] == [True] * count
    for found in answers:
        np.testing.assert_allclose(found, expected, rtol=1e-4)
        if not unlike:
            np.testing.assert_array_equal(found, expected)


def test_nothing_to_ask_is_no_answer(tiny_llama, encoder, monkeypatch):
    nobody = np.zeros(0, np.int32)
    for shared in (False, True):
        engine = Engine(tiny_llama, encoder, decode(), shared=shared)
        found = engine.rank([], [], targets=nobody)
        assert (found.rankings, len(found.nll)) == ([], 0)
        assert engine.nll([], [], nobody).shape == (0,)
        assert engine.choose([], np.zeros((0, 3), np.int32), nobody).rankings == []
        assert engine.write([], 1, 2) == []
        assert engine.branches([]) == []
