"""The rows that a table can have: whose weights answer, and in which way.

A row's name is parsed here and nowhere else; whoever has to know something of a system asks the
`System`. Knows names and keys of a recipe; `llmrec.systems` answers.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from llmrec.errors import LlmrecError

# Those whose scores are probabilities of items, so that they can guide a language model; the first
# one guides where a recipe lists none.
GuidingBaseline = Literal[
    "markov",
    "popularity",
    "recent_popularity",
    "item_knn",
    "sasrec",
    "gru4rec",
    "text_knn",
    "text_knn_genres",
    "text_knn_sentences",
]
Voting = Literal["votes"]  # asks who is similar, and when; the others ask for histories alone
Baseline = Literal[GuidingBaseline, "tgh", Voting]
IdsAlone = Literal[
    "popularity", "recent_popularity", "markov", "item_knn", "tgh", "sasrec", "gru4rec", "votes"
]
NetworkWeights = Literal["network", "network_ce", "network_cpft"]
LanguageWeights = Literal["untuned", "tuned", "tuned_sft"]
# ranked: by the system's own scores; guided: with a baseline's probabilities mixed in; grounded:
# the items nearest to free text; free: the candidate that free text names; fused: a retriever's
# candidates by the log-probabilities of both; routed: so for weak users, the retriever for others.
Way = Literal["ranked", "guided", "grounded", "free", "fused", "routed"]
Kind = Literal["baseline", "network", "language_model"]

SystemName = Literal[
    "popularity",
    "recent_popularity",
    "markov",
    "item_knn",
    "tgh",
    "text_knn",
    "text_knn_genres",
    "text_knn_sentences",
    "sasrec",
    "gru4rec",
    "votes",
    "network",
    "network_ce",
    "network_cpft",
    "untuned",
    "tuned",
    "tuned_sft",
    "untuned_guided",
    "tuned_guided",
    "untuned_grounded",
    "tuned_grounded",
    "untuned_free",
    "tuned_free",
    "untuned_fused",
    "tuned_fused",
    "untuned_routed",
    "tuned_routed",
]

# What a recipe that names none gets. Free text to ground is written far more slowly, tuned_sft is
# what SOFT began with, and the network* are of a section `network`.
SYSTEMS: tuple[SystemName, ...] = (
    "popularity",
    "recent_popularity",
    "markov",
    "item_knn",
    "tgh",
    "text_knn",
    "sasrec",
    "untuned",
    "tuned",
    "untuned_guided",
    "tuned_guided",
)
GUIDES: tuple[str, ...] = get_args(GuidingBaseline)
# What training brought, whatever the way: the weights that these are compared with.
_BEFORE = {
    "tuned": ("untuned", "tuned_sft"),
    "network_ce": ("network",),
    "network_cpft": ("network", "network_ce"),
}
_STEP = {"network": "base", "network_ce": "ce", "network_cpft": "cpft"}
# The keys of `decode` that make a difference to an answer, by the way it is given; those that are
# left out change its speed alone.
_DECODE = {
    "scores": ("filter_seen", "top_k"),
    "ranked": ("filter_seen", "top_k", "search", "beams", "renormalise", "candidates_alone"),
    "guided": ("filter_seen", "top_k", "search", "beams", "renormalise", "guidance"),
    "grounded": ("filter_seen", "top_k", "grounding"),
    "free": ("filter_seen", "top_k", "grounding"),
    "fused": ("filter_seen", "top_k", "renormalise", "candidates_alone", "fusion"),
    "routed": ("filter_seen", "top_k", "renormalise", "candidates_alone", "fusion", "routing"),
}


# Who the similar users are whose votes are counted.
_VOTERS = tuple(f"demonstrations.{key}" for key in ("by", "history", "similarity", "votes.users"))


@dataclass(frozen=True)
class System:
    """A row of the table: `weights` that answer in a `way`. Make it with `parse`."""

    weights: str
    way: Way = "ranked"

    @staticmethod
    def parse(name: str) -> "System":
        """The system of a name. Raises LlmrecError for one that is none, naming those there are."""
        if name not in get_args(SystemName):
            raise LlmrecError(
                f"there is no system {name!r}; there are {', '.join(get_args(SystemName))}"
            )
        for way in get_args(Way):
            if name.endswith(f"_{way}"):
                return System(name.removesuffix(f"_{way}"), way)
        return System(name)

    @staticmethod
    def is_name(name: str) -> bool:
        """Whether a system has this name; predictions made elsewhere may have any other."""
        return name in get_args(SystemName)

    @property
    def name(self) -> str:
        """As a recipe names it."""
        return self.weights if self.way == "ranked" else f"{self.weights}_{self.way}"

    @property
    def kind(self) -> Kind:
        """What the weights are of."""
        if self.weights in get_args(NetworkWeights):
            return "network"
        return "language_model" if self.weights in get_args(LanguageWeights) else "baseline"

    @property
    def is_trained(self) -> bool:
        """Whether `llmrec train` makes its weights; baselines are fitted when they are asked."""
        return self.kind == "network" or self.has_adapter

    @property
    def has_adapter(self) -> bool:
        """Whether a language model answers with an adapter, or with weights trained whole."""
        return self.kind == "language_model" and self.weights != "untuned"

    @property
    def gives_probabilities(self) -> bool:
        """Whether its scores are probabilities of items, so that a target has a likelihood."""
        if self.kind == "baseline":
            return self.weights in GUIDES or self.asks_similar_users
        return self.way in ("ranked", "guided", "fused", "routed")

    @property
    def asks_similar_users(self) -> bool:
        """Whether it is a count over users who are similar at the time, with no weights."""
        return self.weights in get_args(Voting)

    @property
    def knows_ids_alone(self) -> bool:
        """Whether an item that nobody has chosen is to it like any other such item."""
        return self.kind == "network" or self.weights in get_args(IdsAlone)

    @property
    def scored_by(self) -> str:
        """What the score of a listed item is."""
        if self.way == "free":
            return "nothing"
        if self.way == "grounded":
            return "minus the distance of the title's state from that of the text"
        return "log-probability" if self.gives_probabilities else "weight"

    @property
    def is_before_soft(self) -> bool:
        """Whether it answers with the adapter that SOFT began with."""
        return self.weights == "tuned_sft"

    @property
    def step(self) -> str:
        """The step of training whose weights a network answers with: base, ce or cpft."""
        return _STEP[self.weights]

    @property
    def needs(self) -> dict[str, str]:
        """The paths of a recipe that may not be null for it, and why."""
        needs = {}
        if self.kind == "network":
            needs["network"] = "is of a network"
        if self.kind == "network" and self.step == "cpft":
            needs["conformal"] = "is fine-tuned with conformal prediction"
        if self.is_before_soft:
            needs["soft"] = "is the first step of SOFT"
        if self.asks_similar_users:
            needs["demonstrations"] = "counts the votes of similar users"
        if self.way == "guided":
            needs["decode.guidance.baseline"] = "is guided by a baseline"
        if self.way == "free":
            needs["data.candidates"] = "answers by one of some candidates"
        if self.way in ("fused", "routed"):
            needs["data.candidates"] = "ranks a retriever's candidates"
        return needs

    @property
    def wants_catalog(self) -> bool:
        """Whether it answers from the whole catalog alone, so that candidates are refused."""
        return self.way in ("guided", "grounded") or self.kind == "network"

    @property
    def compared_with(self) -> tuple[str, ...]:
        """The systems that paired tests compare it with, besides the best baseline."""
        names = [System(weights, self.way).name for weights in _BEFORE.get(self.weights, ())]
        if self.way in ("fused", "routed"):
            names.append(System(self.weights).name)
        return tuple(name for name in names if self.is_name(name))

    @property
    def depends(self) -> tuple[str, ...]:
        """The paths of a recipe that its answers depend on, besides the data and the weights."""
        language = self.kind == "language_model"
        decode = _DECODE[self.way if language else "scores"]
        return (
            "seed",
            *(f"decode.{key}" for key in decode),
            *(("prompt", "model", "demonstrations") if language else ()),
            *(_VOTERS if self.asks_similar_users else ()),
            *(("baselines.trials",) if self.weights in ("sasrec", "gru4rec") else ()),
            *(("baselines.encoder",) if self.weights == "text_knn_sentences" else ()),
        )


def parsed(names: Sequence[str]) -> list[System]:
    """The systems of a recipe's names."""
    return [System.parse(name) for name in names]
