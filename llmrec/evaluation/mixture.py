"""What a system adds to all baselines taken together.

A model that makes one baseline better may know nothing that another baseline does not. So all
baselines that give probabilities are mixed, p = sum of w p, once with the system and once without,
and the difference of the mixtures' NLL says what it adds. Weights are fitted by expectation
maximisation to the users of other folds, so none is weighed on its own target. Knows no files.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np

from llmrec.evaluation.intervals import Clusters, Floats, Interval, mean_interval
from llmrec.evaluation.layout import number

FOLDS = 5
ROUNDS = 500  # of expectation maximisation, at most
SETTLED = 1e-6  # no weight moves by more


@dataclass(frozen=True)
class Addition:
    """`together`: the NLL of `baselines` mixed; `change`: with `system` in the mixture minus
    without, below 0 where it adds; both in nats. `weight`: the system's, a mean over folds."""

    system: str
    baselines: tuple[str, ...]
    together: Interval
    change: Interval
    weight: float

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {**asdict(self), "baselines": list(self.baselines)}

    def in_words(self, confidence: float) -> str:
        """One sentence."""
        low, high = number(self.change.low, sign=True), number(self.change.high, sign=True)
        names = ", ".join(self.baselines[:-1]) + f" and {self.baselines[-1]}"
        does = "adds to" if self.change.high < 0 else "adds nothing that can be told to"
        return (
            f"{self.system} {does} {names} taken together, mixed by weights of other users: NLL "
            f"{number(self.change.mean, sign=True)} nats ({confidence * 100:g} % interval {low} to "
            f"{high}, n = {self.change.n}; its weight {self.weight:.2f})."
        )


def mixture_weights(probabilities: Floats) -> Floats:
    """(S,) the weights, adding up to 1, under which (E, S) probabilities of what happened are
    likeliest in a mixture."""
    count = probabilities.shape[1]
    weights = np.full(count, 1.0 / count)
    # What nothing gives a probability to says nothing about weights.
    known = probabilities[probabilities.sum(axis=1) > 0]
    for _ in range(ROUNDS if len(known) else 0):
        shares = known * weights
        new = (shares / shares.sum(axis=1, keepdims=True)).mean(axis=0)
        moved = np.abs(new - weights).max()
        weights = new
        if moved < SETTLED:
            break
    return weights


def additions(
    nll: Mapping[str, Floats],
    systems: Sequence[str],
    baselines: Sequence[str],
    clusters: Clusters,
    *,
    samples: int,
    confidence: float,
    seed: int,
) -> list[Addition]:
    """What each of `systems` adds to the `baselines`, of those with a likelihood for every example.

    `nll`: system -> (E,) in nats; `clusters` (E,) the user of each example. Empty for fewer than
    two baselines or FOLDS users.
    """
    measured = {name for name, values in nll.items() if not np.isnan(values).any()}
    names = [name for name in baselines if name in measured]
    users, which = np.unique(clusters, return_inverse=True)
    if len(names) < 2 or len(users) < FOLDS:
        return []
    fold = (np.random.default_rng(seed).permutation(len(users)) % FOLDS)[which]
    interval = partial(mean_interval, samples=samples, confidence=confidence, seed=seed)
    without, _ = _mixed([nll[name] for name in names], fold)
    found = []
    for system in systems:
        if system in measured:
            with_it, weights = _mixed([nll[name] for name in (*names, system)], fold)
            with np.errstate(invalid="ignore"):  # what nothing gives a probability to is left out
                change = with_it - without
            found.append(
                Addition(
                    system,
                    tuple(names),
                    interval(without, clusters),
                    interval(change, clusters),
                    float(weights[-1]),
                )
            )
    return found


def _mixed(columns: Sequence[Floats], fold: Clusters) -> tuple[Floats, Floats]:
    """(E,) NLL of the mixture, weights fitted to the other folds; (S,) their mean over folds."""
    probabilities = np.exp(-np.stack(columns, axis=1))
    result, weights = np.empty(len(fold)), []
    for part in range(FOLDS):
        mine = fold == part
        weights.append(mixture_weights(probabilities[~mine]))
        with np.errstate(divide="ignore"):
            result[mine] = -np.log(probabilities[mine] @ weights[-1])
    return result, np.mean(weights, axis=0)
