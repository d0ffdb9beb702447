"""System `votes`: similar users' choices counted, no model, no weights.

What a list of votes in a prompt can be worth at most is told by this row: the users are those whose
votes prompts show, as they stood before the moment asked about. Popularity breaks ties and gives
every item a probability; how many votes it counts for is chosen in validation.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np

from llmrec.baselines.distribution import Distribution, Floats, Histories
from llmrec.baselines.popularity import shares
from llmrec.baselines.ranking import predict, target_nll
from llmrec.data.records import Examples, Ints
from llmrec.evaluation.predictions import LEAKY, Predictions
from llmrec.inference.pools import Neighbour
from llmrec.inference.similar_users import SimilarUsers, shortfalls
from llmrec.recipe.systems import System
from llmrec.retrieval.votes import tally
from llmrec.systems.baselines import told
from llmrec.systems.resources import Resources

PRIORS = (0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
Pool = Sequence[Neighbour]


@dataclass(frozen=True)
class Asked(Sequence[Ints]):
    """Histories (U) that know whose votes are counted for each of them; a cut knows its own."""

    histories: Sequence[Ints]
    pools: Sequence[Pool]

    def __len__(self) -> int:
        return len(self.histories)

    @overload
    def __getitem__(self, at: int) -> Ints: ...
    @overload
    def __getitem__(self, at: slice) -> "Asked": ...
    def __getitem__(self, at: int | slice) -> "Ints | Asked":
        if isinstance(at, slice):
            return Asked(self.histories[at], self.pools[at])
        return self.histories[at]

    def __iter__(self) -> Iterator[Ints]:
        return iter(self.histories)


@dataclass(frozen=True)
class Voted(Distribution):
    """An item weighs its votes and `prior` votes that all items share by `popularity` (N,)."""

    popularity: Floats
    prior: float

    def weights(self, histories: Histories) -> Floats:
        """See `Distribution.weights`; the histories are `Asked`."""
        assert isinstance(histories, Asked)  # noqa: S101  nothing else knows whose votes count
        weights = np.tile(self.prior * self.popularity, (len(histories), 1))
        for row, pool in enumerate(histories.pools):
            counted = tally([neighbour.titles for neighbour in pool])
            weights[row, counted.items] += counted.votes
        return weights


@dataclass(frozen=True)
class Counting:
    """What counts: who finds the voters, how many, and the scorer over them."""

    finder: SimilarUsers
    users: int
    scorer: Voted
    described: dict[str, Any]


def predictions_of(resources: Resources, system: System, examples: Examples, k: int) -> Predictions:
    """The `k` items with most votes for some examples, at the time of each."""
    begun = time.monotonic()
    counting = _counting(resources)
    split = next((s for s in ("test", "valid") if examples is getattr(resources, s)), None)
    voters = (
        counting.finder.find(examples, counting.users)
        if split is None
        else counting.finder.voters(split, examples)
    )
    candidates = resources.candidates if split == "test" else None
    answers = predict(
        counting.scorer,
        Asked(examples.histories(), voters.neighbours),
        examples.targets,
        len(resources.catalog),
        k,
        resources.recipe.decode.filter_seen and candidates is None,
        candidates,
    )
    described = {**counting.described, **shortfalls(voters, examples, counting.users)}
    return told(resources, system, examples, answers, described, time.monotonic() - begun)


def served_counting(resources: Resources) -> Counting:
    """The same without choosing again what the test split's predictions say was chosen."""
    return _counting(resources, resources.recorded(System.parse("votes")).get("prior"))


def _counting(resources: Resources, prior: float | None = None) -> Counting:
    """The scorer with the prior that is given, or that validation chooses by target NLL."""
    finder = SimilarUsers(resources.recipe, resources.folder)
    size, filter_seen = len(resources.catalog), resources.recipe.decode.filter_seen
    popularity = shares(resources.interactions, size, None, 1.0)
    values: dict[str, float] = {}
    if prior is None:
        valid = resources.valid
        asked = Asked(valid.histories(), finder.voters("valid", valid).neighbours)
        for value in PRIORS:
            nll = target_nll(Voted(popularity, value), asked, valid.targets, size, filter_seen)
            values[f"{value:g}"] = float(nll[np.isfinite(nll)].mean()) if len(nll) else 0.0
        prior = min(PRIORS, key=lambda value: values[f"{value:g}"])
    users = finder.wanted.votes.users
    described = {"users": users, "prior": prior, "valid_nll": values}
    if finder.wanted.leaks:
        described[LEAKY] = True
    return Counting(finder, users, Voted(popularity, prior), described)
