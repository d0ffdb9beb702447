"""Does one system stand above another? A family of paired tests, and what they say in words.

A system stands *above* its reference if the Holm-corrected p-value is below 1 - confidence and the
interval of the difference lies wholly on the better side of 0; *below* likewise; otherwise the two
are *level*: this many users cannot tell them apart. Knows no files.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from llmrec.evaluation.intervals import Clusters, Floats, PairedTest, difference, holm, paired_tests
from llmrec.evaluation.layout import as_json, from_json, number
from llmrec.evaluation.table import LOWER_IS_BETTER, NLL

Standing = Literal["above", "below", "level"]


@dataclass(frozen=True)
class Comparison:
    """`system` minus `reference` in one metric; `p_holm` is corrected within its family."""

    metric: str
    system: str
    reference: str
    test: PairedTest
    p_holm: float
    standing: Standing

    def to_json(self) -> dict[str, Any]:
        """Flat JSON values."""
        said = {
            "metric": self.metric,
            "system": self.system,
            "reference": self.reference,
            **asdict(self.test),
            "p_holm": self.p_holm,
            "standing": self.standing,
        }
        return as_json(said)  # type: ignore[no-any-return]

    @staticmethod
    def from_json(said: Mapping[str, Any]) -> "Comparison":
        """What `to_json` gave. Raises KeyError or TypeError for something else."""
        test = PairedTest(
            from_json(said["difference"]),
            from_json(said["low"]),
            from_json(said["high"]),
            from_json(said["p_value"]),
            int(said["n"]),
            int(said["excluded"]),
        )
        return Comparison(
            said["metric"],
            said["system"],
            said["reference"],
            test,
            from_json(said["p_holm"]),
            said["standing"],
        )


def compared(
    metric: str,
    pairs: Sequence[tuple[str, str]],
    values: Mapping[str, Floats],
    clusters: Clusters,
    *,
    samples: int,
    confidence: float,
    seed: int,
) -> list[Comparison]:
    """One family: a paired test for each (system, reference), Holm-corrected together.

    `values`: system -> (E,) for the same examples; `clusters` (E,) the user of each. Pairs without
    a single example finite in both are left out.
    """
    if not pairs:
        return []
    differences = np.stack([difference(values[a], values[b]) for a, b in pairs], axis=1)
    tests = paired_tests(differences, clusters, samples=samples, confidence=confidence, seed=seed)
    tested = [(pair, test) for pair, test in zip(pairs, tests, strict=True) if test.n]
    corrected = holm([test.p_value for _, test in tested])
    return [
        Comparison(
            metric,
            system,
            reference,
            test,
            float(p),
            standing_of(metric, test, float(p), 1.0 - confidence),
        )
        for ((system, reference), test), p in zip(tested, corrected, strict=True)
    ]


def standing_of(metric: str, test: PairedTest, p: float, alpha: float) -> Standing:
    """What a test says at level `alpha`, `p` corrected: see the head of this file."""
    if not p < alpha:
        return "level"
    if test.low > 0:
        return "below" if metric in LOWER_IS_BETTER else "above"
    if test.high < 0:
        return "above" if metric in LOWER_IS_BETTER else "below"
    return "level"


def in_words(comparison: Comparison, confidence: float) -> str:
    """One sentence without jargon, such as `tuned stands below markov: its NLL is ... higher`."""
    test = comparison.test
    lead = {
        "above": f"{comparison.system} stands above {comparison.reference}",
        "below": f"{comparison.system} stands below {comparison.reference}",
        "level": f"{comparison.system} cannot be told apart from {comparison.reference}",
    }[comparison.standing]
    unit = " nats" if comparison.metric == NLL else ""
    if test.difference == 0:
        amount = "equal on average"
    else:
        amount = (
            f"{number(abs(test.difference))}{unit} {'higher' if test.difference > 0 else 'lower'}"
        )
    text = f"{lead}: {comparison.metric} {amount}"
    if math.isfinite(test.low):
        low, high = number(test.low, sign=True), number(test.high, sign=True)
        text += f" ({confidence * 100:g} % interval of the difference {low} to {high}"
        text += f", p = {number(comparison.p_holm)} after Holm, n = {test.n})"
    return text + "."
