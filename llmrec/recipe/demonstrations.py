"""The section of a recipe about similar users: how they are found, chosen and shown."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from llmrec.recipe.section import Count, NotNegative, NotNegativeCount, Section, Word


class Weights(Section):
    """What each measure counts in the similarity of two users; `llmrec retrieve --fit` finds them
    in validation."""

    cosine: NotNegative = 1.0
    """Of the mean vectors of the items in both histories."""
    jaccard: NotNegative = 1.0
    """Items in both histories over items in either."""
    lcs: NotNegative = 1.0
    """Longest common subsequence over the length of the shorter history."""
    recency: NotNegative = 1.0
    """Items in both, late ones counting more."""
    transition: NotNegative = 1.0
    """Pairs of consecutive items in both."""
    dtw: NotNegative = 1.0
    """Dynamic time warping over the items' vectors."""

    @model_validator(mode="after")
    def _any(self) -> Self:
        if not any(self.model_dump().values()):
            raise ValueError("at least one weight above 0")
        return self


class Similarity(Section):
    """Which users are similar: the nearest by vectors, then ranked by weighted measures."""

    vectors: Literal["factors", "states", "sentences"] = "factors"
    """Vectors of items. factors: of the items chosen together, no model needed; states: mean token
    states of the titles in the untuned language model; sentences: of a sentence encoder."""
    embed: Literal["items", "history"] = "items"
    """What the vector of a user is made of. items: the mean of the items' vectors; history: the
    titles read as one text, as in the paper, for vectors states or sentences."""
    encoder: Word = "all-minilm-l6-v2"
    """Of sentences: a name that `llmrec fetch model` knows, a Hub id, or a folder."""
    coarse: Count = 200
    """Users found by vectors, to be ranked by the measures."""
    every: Count = 1
    """A state is kept of every so many-th choice of a user; more saves memory."""
    weights: Weights = Weights()
    """Weights of the measures."""

    @model_validator(mode="after")
    def _of_texts(self) -> Self:
        if self.embed == "history" and self.vectors == "factors":
            raise ValueError("embed history reads titles; it needs vectors states or sentences")
        return self


class Selection(Section):
    """Self-adaptive selection (AdaptRec, arXiv 2504.08786): the language model itself says how
    similar each user of a pool is, from 1 to 10, and the best are shown."""

    pool: Count = 10
    """Users that the model rates."""
    ask: Literal["pointwise", "listwise"] = "pointwise"
    """pointwise: one question for each user of the pool; listwise: all of them in one prompt, as
    the paper's authors ask."""
    reader: Literal["score", "generate"] = "score"
    """score: the mean rating under the probabilities of the ten answers; generate: JSON is
    written and read, and where that fails the order of retrieval stays."""
    refresh: NotNegativeCount = 0
    """While training the live model selects anew every so many steps; 0: once, before the first."""


class Votes(Section):
    """The titles that similar users had chosen, counted: one vote a user for each title of the
    history that would be shown of them and the one they chose next."""

    users: Count = 100
    """Users who vote."""
    titles: Count = 20
    """Titles shown in a prompt, most votes first; none that the user has seen."""
    pick: Literal["most_voted", "random"] = "most_voted"
    """random: titles drawn from the catalog instead, to compare with."""


class Demonstrations(Section):
    """Similar users shown in a prompt: their histories and what they chose next, all of it earlier
    than what is asked."""

    show: Literal["users", "votes", "both"] = "users"
    """users: some of them, one by one; votes: the titles that many of them chose; both: both."""
    count: Annotated[int, Field(ge=1, le=20)] = 3
    """Users shown; the paper tries 1, 3, 5, 7, 10."""
    by: Literal["retrieval", "random", "leaky"] = "retrieval"
    """retrieval: the most similar users; random: any; leaky, in a study alone: as the paper's
    authors do it, users of the very split that is asked about, answers and all."""
    votes: Votes = Votes()
    """How the votes of similar users are counted and shown."""
    history: Count = 10
    """Latest titles shown of each, and compared."""
    similarity: Similarity = Similarity()
    """How similar users are found."""
    selection: Selection | None = None
    """The model chooses among them; null: the most similar are shown."""

    @model_validator(mode="after")
    def _enough(self) -> Self:
        if self.selection is not None and self.selection.pool < self.count:
            raise ValueError(
                f"selection.pool = {self.selection.pool} users cannot give count = {self.count}"
            )
        wanted = max(self.pool, 0 if self.show == "users" else self.votes.users)
        if self.similarity.coarse < wanted:
            raise ValueError(
                f"similarity.coarse = {self.similarity.coarse} users found by vectors cannot give "
                f"the {wanted} that are wanted"
            )
        if self.selection is not None and not self.shows_users:
            raise ValueError("selection chooses users to show, and show = votes shows none")
        return self

    @property
    def shows_users(self) -> bool:
        """Whether prompts show users one by one."""
        return self.show in ("users", "both")

    @property
    def shows_votes(self) -> bool:
        """Whether prompts show a list of titles."""
        return not self.shows_users or self.show == "both"

    @property
    def leaks(self) -> bool:
        """Whether prompts show what must not be known."""
        return self.by == "leaky"

    @property
    def pool(self) -> int:
        """How many users are found for a prompt."""
        return self.selection.pool if self.selection is not None else self.count
