"""Every system of a run, ready to answer raw histories: the lists of the table, for anybody.

What validation chose for the table is taken from the predictions that record it. Similar users are
those of the whole training data, as of now; targets and their times play no part.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import log_softmax

from llmrec.baselines.ranking import WithoutItems, without_items
from llmrec.data import sealed
from llmrec.data.records import Examples, concatenated, offsets_of
from llmrec.decoding.beam import Ranking
from llmrec.decoding.fusion import fused, ranked
from llmrec.errors import LlmrecError
from llmrec.inference.engine import Engine, closed_items
from llmrec.inference.prompting import Prompting, demonstrated
from llmrec.inference.similar_users import SimilarUsers
from llmrec.recipe import Recipe
from llmrec.recipe.systems import System
from llmrec.runs.artifact import SETTINGS, VERSION, Artifact, differences
from llmrec.runs.folder import RunFolder
from llmrec.runs.identity import base_content, template_content
from llmrec.runs.made import PROMPT
from llmrec.systems import baselines, explaining, free, routing, votes
from llmrec.systems.fusion import served_fusion
from llmrec.systems.grounded import served_fusion as served_grounded_fusion
from llmrec.systems.guidance import served_guidance
from llmrec.systems.language_models import adapter_of_system
from llmrec.systems.resources import Resources
from llmrec.text.encoding import EncodedPrompt, Ids

Items = npt.NDArray[np.int32]


@dataclass(frozen=True)
class Requests:
    """U histories; `users`, their names, where they have some; `candidates` (U, C) to choose from,
    where not from the whole catalog; `closed` (M,), what of the catalog nobody is given."""

    histories: Sequence[Items]
    users: Sequence[str] | None = None
    candidates: Items | None = None
    closed: Items | None = None

    def __len__(self) -> int:
        return len(self.histories)


Answer = Callable[[Requests, int], list[Ranking]]


def answering(resources: Resources, system: System) -> Answer:
    """What ranks the k best items for some requests as a system of the run.

    Requests without candidates get those of the run's retriever, where it has one. Loads models and
    fits baselines now. Raises LlmrecError where the system is none of this run, lacks its weights,
    or would be given other prompts than it was trained with.
    """
    if system.asks_similar_users:
        return _Voted(resources)
    if system.kind != "language_model":
        return _Scored(resources, baselines.served_scorer(resources, system))
    engine, prompts = resources.language.engine(system), RawPrompts(resources)
    if system.way == "grounded":
        return _Grounded(resources, system, engine, prompts)
    if system.way == "free":
        return _Free(resources, engine, prompts)
    searched = SearchedAnswer(resources, system, engine, prompts)
    if system.way == "routed":
        return _Routed(resources, searched)
    return searched


def with_proposed(resources: Resources, requests: Requests) -> Requests:
    """Requests that have candidates: where none are given, those of the run's retriever, if any.

    Their order is one and the same for all, drawn with the recipe's seed.
    """
    retriever = resources.retriever
    if retriever is None or requests.candidates is not None:
        return requests
    order = np.random.default_rng(resources.recipe.seed).permutation(retriever.count)
    proposed, _ = retriever.propose(requests.histories, requests.closed)
    return replace(requests, candidates=proposed[:, order])


def examples_of_now(histories: Sequence[Items], users: Sequence[str] | None) -> Examples:
    """Histories (U) with their users' names, asked about after all that is known; no targets."""
    count = len(histories)
    now, none = np.full(count, np.iinfo(np.int64).max), np.zeros(count, bool)
    names = [None] * count if users is None else users
    return Examples(
        np.array(names, object),
        offsets_of(histories),
        concatenated(histories),
        np.zeros(count, np.int32),
        now,
        none,
        none,
    )


class RawPrompts:
    """The prompts of raw histories."""

    def __init__(self, resources: Resources) -> None:
        self.recipe, self.folder = resources.recipe, resources.folder
        self.encoder = resources.language.encoder
        self._finder: SimilarUsers | None = None

    def of(self, requests: Requests, engine: Engine) -> list[Ids]:
        """(U) token ids; who has no name cannot be one of the similar users."""
        return [prompt.ids for prompt in self.encoded(requests, engine)]

    def encoded(self, requests: Requests, engine: Engine) -> list[EncodedPrompt]:
        """(U) prompts as they are laid out."""
        prompting = self._prompting(requests)
        contexts = prompting.contexts(prompting.selected(engine))
        pairs = zip(prompting.histories, contexts, strict=True)
        return [self.encoder.prompt(history, context) for history, context in pairs]

    def _prompting(self, requests: Requests) -> Prompting:
        histories, wanted = requests.histories, self.recipe.demonstrations
        shows = self.recipe.data.candidates is not None
        candidates = requests.candidates if shows else None
        if wanted is None:
            return Prompting(self.encoder, histories, candidates)
        if self._finder is None:
            self._finder = SimilarUsers(self.recipe, self.folder)
        examples = examples_of_now(requests.histories, requests.users)
        return demonstrated(self.recipe, self.encoder, self._finder, examples, candidates)


class _Scored:
    """A baseline or a network."""

    def __init__(self, resources: Resources, scorer: Any) -> None:
        self.resources, self.scorer, self.size = resources, scorer, len(resources.catalog)
        self.filter_seen = resources.recipe.decode.filter_seen

    def __call__(self, requests: Requests, k: int) -> list[Ranking]:
        requests = with_proposed(self.resources, requests)
        scorer, closed = self.scorer, requests.closed
        if closed is not None:
            scorer = WithoutItems(scorer, closed)
        return baselines.ranked(
            scorer, requests.histories, self.size, k, self.filter_seen, requests.candidates
        )


class _Voted:
    """The votes of users who are similar now."""

    def __init__(self, resources: Resources) -> None:
        self.resources = resources
        self.counting = votes.served_counting(resources)

    def __call__(self, requests: Requests, k: int) -> list[Ranking]:
        requests = with_proposed(self.resources, requests)
        examples = examples_of_now(requests.histories, requests.users)
        voters = self.counting.finder.find(examples, self.counting.users)
        scorer: Any = self.counting.scorer
        if requests.closed is not None:
            scorer = WithoutItems(scorer, requests.closed)
        return baselines.ranked(
            scorer,
            votes.Asked(requests.histories, voters.neighbours),
            len(self.resources.catalog),
            k,
            self.resources.recipe.decode.filter_seen,
            requests.candidates,
        )


class SearchedAnswer:
    """A language model that ranks, alone, guided or fused with a retriever."""

    def __init__(
        self, resources: Resources, system: System, engine: Engine, prompts: RawPrompts
    ) -> None:
        self.resources, self.engine, self.prompts = resources, engine, prompts
        guided = system.way == "guided"
        self.guidance = served_guidance(resources, system) if guided else None
        adds = system.way in ("fused", "routed")
        self.fusion = served_fusion(resources, system) if adds else None

    def __call__(self, requests: Requests, k: int) -> list[Ranking]:
        requests = with_proposed(self.resources, requests)
        prompts = self.prompts.of(requests, self.engine)
        if requests.candidates is not None:
            rankings = self.engine.choose(prompts, requests.candidates).rankings
            if self.fusion is not None and self.resources.retriever is not None:
                log_q = self.resources.retriever.log_q(requests.histories, requests.candidates)
                rankings, _ = fused(
                    rankings, requests.candidates, log_q, self.fusion.weight, self.fusion.scale
                )
            return [Ranking(r.positions[:k], r.scores[:k], r.certified) for r in rankings]
        q, weight = self._guiding(requests)
        found = self.engine.rank(
            prompts, self._closed(requests), k, probabilities=q, weight=weight, shut=requests.closed
        )
        return found.rankings

    def explain(self, requests: Requests, k: int) -> dict[str, Any]:
        """The prompt of the one request and, from the whole catalog, the search for its `k` items.

        See `explaining`; `certified` says whether the list is proven.
        """
        requests = with_proposed(self.resources, requests)
        [ranking] = self(requests, k)
        [prompt] = self.prompts.encoded(requests, self.engine)
        said = {
            "tokens": explaining.tokens_of(prompt, self.prompts.encoder),
            "titles_left_out": prompt.dropped,
            "certified": ranking.certified,
            "tree": None,
        }
        if requests.candidates is None and len(ranking.positions):
            q, weight = self._guiding(requests)
            [closed] = self._closed(requests)
            said["tree"] = explaining.search_tree(
                self.engine, self.resources.catalog, prompt, closed, ranking.positions, q, weight
            )
        return said

    def _closed(self, requests: Requests) -> list[Items]:
        filter_seen = self.resources.recipe.decode.filter_seen
        return closed_items(requests.histories, filter_seen)

    def _guiding(self, requests: Requests) -> tuple[npt.NDArray[np.float64] | None, float]:
        """The guide's probabilities (U, N), and the weight of the model beside them."""
        if self.guidance is None:
            return None, 1.0
        q = self.guidance.probabilities(self.resources, requests.histories)
        if requests.closed is not None:
            q = without_items(q, requests.closed)
        return q, self.guidance.weight


class _Routed:
    """The language model for weak users, the retriever's own list for the others."""

    def __init__(self, resources: Resources, model: SearchedAnswer) -> None:
        self.resources, self.model, self.retriever = resources, model, resources.retriever
        assert self.retriever is not None  # noqa: S101  a rule of recipes
        self.routing = routing.routing_of(resources, self.retriever)

    def __call__(self, requests: Requests, k: int) -> list[Ranking]:
        requests = with_proposed(self.resources, requests)
        assert requests.candidates is not None  # noqa: S101  proposed
        assert self.retriever is not None  # noqa: S101  a rule of recipes
        log_q = self.retriever.log_q(requests.histories, requests.candidates)
        found = ranked(requests.candidates, log_softmax(log_q, axis=1))
        rows = np.flatnonzero(self.routing.weak(requests.histories, requests.users))
        weak = replace(
            requests,
            histories=[requests.histories[i] for i in rows],
            users=None if requests.users is None else [requests.users[i] for i in rows],
            candidates=requests.candidates[rows],
        )
        for row, ranking in zip(rows, self.model(weak, k) if len(rows) else [], strict=True):
            found[row] = ranking
        return [Ranking(r.positions[:k], r.scores[:k], r.certified) for r in found]


class _Grounded:
    """A language model that writes, and the items nearest to that."""

    def __init__(
        self, resources: Resources, system: System, engine: Engine, prompts: RawPrompts
    ) -> None:
        self.resources, self.engine, self.prompts = resources, engine, prompts
        self.fusion = served_grounded_fusion(resources, system)

    def __call__(self, requests: Requests, k: int) -> list[Ranking]:
        grounded = self.resources.language.grounded
        texts = grounded.written(self.engine, self.prompts.of(requests, self.engine))
        q = self.fusion.probabilities(self.resources, requests.histories)
        return grounded.rankings(
            self.engine.model,
            texts,
            requests.histories,
            k,
            q,
            self.fusion.gamma,
            closed=requests.closed,
        )


class _Free:
    """A language model that writes, and the candidate that it names."""

    def __init__(self, resources: Resources, engine: Engine, prompts: RawPrompts) -> None:
        self.resources, self.engine, self.prompts = resources, engine, prompts

    def __call__(self, requests: Requests, k: int) -> list[Ranking]:
        requests = with_proposed(self.resources, requests)
        if requests.candidates is None:
            raise LlmrecError(
                "this system names one of some candidates; give every history its candidates"
            )
        prompts = self.prompts.of(requests, self.engine)
        texts = self.resources.language.grounded.written(self.engine, prompts)
        return free.named(texts, requests.candidates, self.resources.catalog.titles)


def require_trained_prompts(recipe: Recipe, folder: RunFolder, system: System) -> None:
    """Raise LlmrecError where the recipe gives an adapter of the run other prompts or another base
    model than it was trained with, naming the keys."""
    if not system.has_adapter:
        return
    place = adapter_of_system(recipe, folder, system)
    if place not in (folder.adapter, folder.sft.adapter):
        return
    wrong = sealed.problem(place)
    if wrong is not None:
        raise LlmrecError(f"{place} is damaged ({wrong}); run `llmrec train` to make it again")
    contents = {**base_content(recipe), **template_content(recipe)}
    now = Artifact(place, recipe, (*PROMPT, "demonstrations"), contents=contents).key
    trained = sealed.facts(place).get(SETTINGS) or {}
    read = [name for name in {*trained, *now} if name in now or name.startswith("demonstrations")]
    different = differences(*({n: key[n] for n in read if n in key} for key in (trained, now)))
    different.pop(VERSION, None)
    if different:
        keys = ", ".join(f"{name} ({old!r} -> {new!r})" for name, (old, new) in different.items())
        raise LlmrecError(
            f"{place} was trained with other prompts than the recipe now gives (trained -> now): "
            f"{keys}; serve it with the recipe that it was trained with"
        )
