"""The rows that a table can have."""

from typing import Literal

Baseline = Literal["popularity", "recent_popularity", "markov", "item_knn", "tgh", "sasrec"]


NetworkSystem = Literal["network", "network_ce", "network_cpft"]


System = Literal[
    Baseline,
    NetworkSystem,
    "untuned",
    "tuned",
    "tuned_sft",
    "untuned_guided",
    "tuned_guided",
    "untuned_grounded",
    "tuned_grounded",
    "untuned_free",
    "tuned_free",
]


# What a recipe that names none gets. Free text to ground is written far more slowly, tuned_sft is
# what SOFT began with, and the network* are of a section `network`.
SYSTEMS: tuple[System, ...] = (
    "popularity",
    "recent_popularity",
    "markov",
    "item_knn",
    "tgh",
    "sasrec",
    "untuned",
    "tuned",
    "untuned_guided",
    "tuned_guided",
)
