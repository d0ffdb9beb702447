"""From Rankings to an honest table: metrics, intervals, paired tests. Needs numpy, not torch."""

from llmrec.evaluation.beyond import BeyondAccuracy, beyond_accuracy
from llmrec.evaluation.intervals import (
    Interval,
    PairedTest,
    holm,
    mean_interval,
    mean_intervals,
    paired_test,
    paired_tests,
)
from llmrec.evaluation.metrics import average_precision, hit_rate, mrr, ndcg, precision, recall
from llmrec.evaluation.predictions import Predictions, SystemInfo

__all__ = [
    "BeyondAccuracy",
    "Interval",
    "PairedTest",
    "Predictions",
    "SystemInfo",
    "average_precision",
    "beyond_accuracy",
    "hit_rate",
    "holm",
    "mean_interval",
    "mean_intervals",
    "mrr",
    "ndcg",
    "paired_test",
    "paired_tests",
    "precision",
    "recall",
]
