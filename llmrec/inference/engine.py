"""The Engine: the one way to ask a language model, always about a whole list of prompts.

Prompts of like length are read together, what all of them begin with once, and passes at fixed
shapes are kept from call to call. Processes can share a list: then every one does equally many
passes, whatever the prompts are, and gets all answers. Answers stand in the order of the prompts.
Knows neither a recipe as a whole nor a run, and prints nothing.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from copy import copy
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache, partial
from typing import Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from llmrec.data.batching import Batch, batches
from llmrec.data.candidates import candidate_nll
from llmrec.decoding.beam import Ranking, Scoring, beam_search, certified_search
from llmrec.decoding.beginning import NOTHING, Beginning, beginning_of
from llmrec.decoding.best_first import best_first
from llmrec.decoding.candidates import candidate_ranking, candidate_scores, passes_at_most
from llmrec.decoding.fixed_steps import FixedSteps
from llmrec.decoding.free import Written, free_beam_search
from llmrec.decoding.likelihood import PathScores, path_scores
from llmrec.decoding.open_items import OpenItems
from llmrec.decoding.shared_prompt import Head, SharedPrompt
from llmrec.errors import RecipeError
from llmrec.model.in_flight import by_turns, fetched
from llmrec.model.loading import adapter_off
from llmrec.model.memory import Halves
from llmrec.model.softmax import FullSoftmax
from llmrec.recipe.decoding import Decode
from llmrec.runs.processes import gathered, processes, share_of
from llmrec.text.encoding import Ids, PromptEncoder
from llmrec.text.letters import letter_ids
from llmrec.text.tree import FlatTree

Items = npt.NDArray[np.int32]
Doubles = npt.NDArray[np.float64]
T = TypeVar("T")
WIDEST = 640  # beams of a user, at most, that a proof is sought with
FARTHEST = 2048  # tokens behind a prompt, about, that best-first search may read for a proof
TREE_TOKENS = 4096  # tokens of trees at a time, at most, padding counted


@dataclass(frozen=True)
class Ranked:
    """Answers to E prompts: their `rankings`, and `nll` (E,) of the targets in nats.

    It is infinite for a target that is not open to its user, NaN where no targets were given.
    """

    rankings: list[Ranking]
    nll: Doubles


class OfUsers(Protocol):
    """(E, N) numbers, those of some of E users at a time: an array, or what makes them."""

    def __getitem__(self, users: Batch, /) -> Doubles: ...


class Engine:
    """A language model that is asked behind prompts, as `decode` says.

    `untuned`: with the model's adapter off, which is on again between calls. `shared`: processes
    share every list, so all of them call alike. The weights may change between calls, the model
    may not. Raises RecipeError where `decode` wants CUDA graphs and the model is on no CUDA GPU.
    """

    def __init__(
        self,
        model: nn.Module,
        encoder: PromptEncoder,
        decode: Decode,
        *,
        untuned: bool = False,
        shared: bool = False,
    ) -> None:
        self.model, self.encoder, self.decode = model, encoder, decode
        self._untuned, self._shared = untuned, shared
        self._steps = _fixed_steps(model, decode)
        self._beginning: Beginning | None = None
        self._halves = Halves()  # where memory runs out

    def behind(self, prompts: Iterable[Ids]) -> "Engine":
        """For further calls about some of these prompts: what all begin with, read now and once.

        For as long as the weights stay as they are.
        """
        begun = copy(self)
        with self._state():
            begun._beginning = beginning_of(self.model, prompts)
        return begun

    def rank(
        self,
        prompts: Sequence[Ids],
        closed: Sequence[Items],
        top_k: int | None = None,
        *,
        targets: Items | None = None,
        probabilities: OfUsers | None = None,
        weight: float = 1.0,
        shut: Items | None = None,
    ) -> Ranked:
        """The `top_k` items of the catalog behind each of E prompts, by default as `decode` says.

        `closed` (E): positions that may not come out, `shut` (M,): those that may for nobody.
        `targets` (E,): what their likelihood under the decoder is wanted of. `weight` of the model
        against `probabilities` (E, N), a baseline's, for guidance.
        """
        wanted = self.decode.top_k if top_k is None else top_k

        def ask(shared: SharedPrompt, batch: Batch) -> Iterable[tuple[Ranking, float]]:
            open_items = self._open_items(closed, probabilities, batch, shut)
            found = self._searched(shared, open_items, wanted, weight)
            if targets is None:
                return [(ranking, np.nan) for ranking in found]
            paths = self._paths(shared, targets[batch], open_items)
            return zip(found, paths.nll(weight).tolist(), strict=True)

        head = self._head if self.decode.renormalise else None
        return _ranked(self._read(prompts, ask, head=head))

    def choose(
        self, prompts: Sequence[Ids], candidates: Items, targets: Items | None = None
    ) -> Ranked:
        """All `candidates` (E, C) of each of E prompts, best first; `nll` is among them.

        Where prompts show them with letters, by the probabilities of these.
        """
        encoder, plan = self.encoder, plan_of(prompts, self.decode)
        completions, branches, renormalise = (
            encoder.completions,
            candidates,
            self.decode.renormalise,
        )
        trie = None if self.decode.candidates_alone else encoder.trie
        if encoder.letters:
            completions, renormalise, trie = letter_ids(encoder.title_tokens), True, None
            branches = np.broadcast_to(np.arange(candidates.shape[1]), candidates.shape)

        @cache
        def passes(vocabulary: int) -> int:
            """What each batch gets at least, so that processes read equally often."""
            if not self._evenly:
                return 0
            return max(passes_at_most(completions, branches[b], vocabulary) for b in plan)

        def ask(shared: SharedPrompt, batch: Batch) -> Iterable[tuple[Ranking, float]]:
            among, least = candidates[batch], passes(shared.logits.shape[1])
            scores = candidate_scores(
                shared, completions, branches[batch], renormalise, least, trie
            )
            nll = np.full(len(batch), np.nan)
            if targets is not None:
                nll = candidate_nll(scores, among, targets[batch])
            found = [candidate_ranking(*row) for row in zip(among, scores, strict=True)]
            return zip(found, nll.tolist(), strict=True)

        return _ranked(self._read(prompts, ask))

    def nll(self, prompts: Sequence[Ids], closed: Sequence[Items], targets: Items) -> Doubles:
        """(E,) minus log-probability, in nats, of each of E targets among the items not `closed`.

        Infinite where a target is closed itself.
        """

        def ask(shared: SharedPrompt, batch: Batch) -> list[float]:
            open_items = self._open_items(closed, None, batch)
            found: list[float] = self._paths(shared, targets[batch], open_items).nll().tolist()
            return found

        return np.array(self._read(prompts, ask, head=self._head), np.float64)

    def paths(
        self,
        prompts: Sequence[Ids],
        closed: Sequence[Items],
        targets: Items,
        probabilities: OfUsers | None = None,
        shut: Items | None = None,
    ) -> Iterator[tuple[Batch, PathScores]]:
        """The choices on the way to each target, batch by batch with the numbers of its prompts.

        For likelihoods under many weights of guidance by `probabilities` (E, N). Every process
        computes all of them.
        """
        with self._state():
            beginning = self._begun(prompts)

        def ask(batch: Batch) -> list[tuple[Batch, PathScores]]:
            shared = self._shared_prompt(prompts, batch, beginning, self._head)
            open_items = self._open_items(closed, probabilities, batch, shut)
            return [(batch, self._paths(shared, targets[batch], open_items))]

        for batch in plan_of(prompts, self.decode):
            with self._state():
                found = self._halves.answer(batch, ask)
            yield from found

    def write(
        self,
        prompts: Sequence[Ids],
        beams: int,
        max_new_tokens: int,
        together: Sequence[Batch] | None = None,
    ) -> list[list[Written]]:
        """The `beams` best free answers behind each prompt, of `max_new_tokens` tokens at most.

        `together`: which prompts are read at a time, where these share more than all do.
        """
        end = self.encoder.tokenizer.eos_token_id

        def ask(shared: SharedPrompt, _: Batch) -> list[list[Written]]:
            return free_beam_search(shared, beams=beams, end=end, max_new_tokens=max_new_tokens)

        return self._read(prompts, ask, together)

    def branches(self, trees: Sequence[FlatTree]) -> list[Doubles]:
        """(M,) log-probabilities, in nats over the vocabulary, of each tree's M branches."""
        softmax, device = FullSoftmax(), next(self.model.parameters()).device

        def answer(batch: Batch) -> list[Doubles]:
            some = [trees[i] for i in batch]
            prepared = {name: x.to(device) for name, x in softmax.prepare(some).items()}
            with torch.no_grad():
                found = softmax.branch_log_probabilities(self.model, prepared)
            ends = np.cumsum([tree.branch_count for tree in some])
            return np.split(fetched(found), ends[:-1])

        lengths = [len(tree.input_ids) for tree in trees]
        return self._each(batches(lengths, tokens=TREE_TOKENS, shortest_first=True), answer)

    def _read(
        self,
        prompts: Sequence[Ids],
        ask: Callable[[SharedPrompt, Batch], Iterable[T]],
        together: Sequence[Batch] | None = None,
        head: Head | None = None,
    ) -> list[T]:
        """What `ask` finds behind each prompt, for which it needs the logits of `head`."""
        beginning = None
        if together is None:
            with self._state():
                beginning = self._begun(prompts)
        return self._each(
            plan_of(prompts, self.decode) if together is None else together,
            lambda batch: ask(self._shared_prompt(prompts, batch, beginning, head), batch),
        )

    def _each(self, plan: Sequence[Batch], answer: Callable[[Batch], Iterable[T]]) -> list[T]:
        """What all batches are answered, in the order of their indices."""
        found: dict[int, T] = {}
        with self._state():
            numbers = share_of(len(plan)) if self._shared else list(range(len(plan)))
            mine = [plan[number] for number in numbers]
            ask = answer if self._evenly else partial(self._halves.answer, ask=answer)
            together = 1 if self._evenly else self.decode.batches_in_flight
            for batch, answers in zip(mine, by_turns(together, ask, mine), strict=True):
                found |= zip(batch.tolist(), answers, strict=True)
        if self._shared:
            found = gathered(found)
        return [found[i] for i in range(len(found))]

    def _begun(self, prompts: Sequence[Ids]) -> Beginning | None:
        """What all prompts begin with; None where each batch may have a beginning of its own."""
        found = self._beginning or beginning_of(self.model, prompts)
        return NOTHING if found is None and self._evenly else found

    def _shared_prompt(
        self, prompts: Sequence[Ids], batch: Batch, beginning: Beginning | None, head: Head | None
    ) -> SharedPrompt:
        return SharedPrompt(self.model, [prompts[i] for i in batch], beginning, self._steps, head)

    @cached_property
    def _head(self) -> Head | None:
        """The tokens of titles, whose logits are all that a softmax over open tokens needs; None
        where most of the vocabulary is among them."""
        tokens, device = self.encoder.trie.tokens, next(self.model.parameters()).device
        tokens = tokens[tokens >= 0]  # the root has none
        vocabulary = self.model.get_input_embeddings().weight.shape[0]
        few = len(tokens) and 2 * len(np.unique(tokens)) < vocabulary
        return Head.of(tokens, device) if few else None

    def _open_items(
        self,
        closed: Sequence[Items],
        probabilities: OfUsers | None,
        batch: Batch,
        shut: Items | None = None,
    ) -> OpenItems:
        q = None if probabilities is None else probabilities[batch]
        return OpenItems(self.encoder.trie, [closed[i] for i in batch], q, shut)

    def _paths(self, shared: SharedPrompt, targets: Items, open_items: OpenItems) -> PathScores:
        completions = self.encoder.completions
        return path_scores(shared, completions, targets.tolist(), open_items, self._evenly)

    def _searched(
        self, prompts: SharedPrompt, open_items: OpenItems, top_k: int, weight: float
    ) -> list[Ranking]:
        """The `top_k` items of each user; beams are as many as that at least."""
        scoring = Scoring(self.decode.renormalise, weight)
        if self.decode.kind == "best_first":
            found = best_first(prompts, open_items, top_k=top_k, scoring=scoring, most=FARTHEST)
            return found.rankings
        beams = max(self.decode.width, top_k)
        if self.decode.kind == "certified":
            widest = max(beams, WIDEST)
            return certified_search(
                prompts, open_items, beams=beams, top_k=top_k, scoring=scoring, widest=widest
            )
        return beam_search(prompts, open_items, beams=beams, top_k=top_k, scoring=scoring)

    @property
    def _evenly(self) -> bool:
        """Whether passes must be equally many on all processes, which sharded models demand."""
        return self._shared and processes().num_processes > 1

    def _state(self) -> AbstractContextManager[None]:
        return adapter_off(self.model) if self._untuned else nullcontext()


def live_engine(
    encoder: PromptEncoder, decode: Decode, untuned: bool = False
) -> Callable[[nn.Module], Engine]:
    """What asks the model that training calls it with, and all processes share.

    The Engine is kept from call to call, with the passes that it knows, while it is one model.
    """
    return lru_cache(maxsize=1)(
        lambda model: Engine(model, encoder, decode, untuned=untuned, shared=True)
    )


def by_beams(decode: Decode, beams: int) -> Decode:
    """The same by beam search for as many items as there are beams, whatever the recipe's is."""
    return decode.model_copy(update={"search": "beam", "beams": beams, "top_k": beams})


def plan_of(prompts: Sequence[Ids], decode: Decode) -> list[Batch]:
    """Which prompts are read at a time; the number of processes changes nothing in it."""
    return batches(list(map(len, prompts)), decode.batch_size, decode.batch_tokens)


def closed_items(
    histories: Sequence[Items], filter_seen: bool, closed: Items | None = None
) -> list[Items]:
    """What each user may not be recommended: the history, or nothing; and what is `closed` to
    all."""
    own = [history if filter_seen else history[:0] for history in histories]
    return own if closed is None else [np.concatenate([one, closed]) for one in own]


def _ranked(found: Sequence[tuple[Ranking, float]]) -> Ranked:
    return Ranked([ranking for ranking, _ in found], np.array([n for _, n in found], np.float64))


def _fixed_steps(model: nn.Module, decode: Decode) -> FixedSteps | None:
    """What runs the passes where graphs are wanted."""
    if not decode.cuda_graphs:
        return None
    device = next(model.parameters()).device
    if device.type != "cuda":
        raise RecipeError(
            f"decode.cuda_graphs: true needs a CUDA GPU, and the model is on {device}; set "
            "decode.cuda_graphs=false"
        )
    return FixedSteps(model)
