"""The prompts of some examples, with what is shown beside each history.

Candidates stand with the data and similar users in the run; which of these are shown is a matter of
the model where the recipe lets it select.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from llmrec.data.candidates import draw_unseen, generator_of, read_candidates
from llmrec.data.records import Examples
from llmrec.errors import DataError
from llmrec.inference.engine import Engine
from llmrec.inference.pools import Pools
from llmrec.inference.ratings import Selected, Selecting
from llmrec.inference.similar_users import SimilarUsers
from llmrec.recipe import Recipe
from llmrec.retrieval.votes import tally
from llmrec.runs.folder import RunFolder
from llmrec.text.encoding import Context, Ids, PromptEncoder

RANDOM_TITLES = 5  # the purpose of that draw


@dataclass(frozen=True)
class Prompting:
    """E histories with, where the recipe has them, `candidates` (E, C), the `pools` of each, and
    the `votes` (E) that each prompt shows, positions with most votes first."""

    encoder: PromptEncoder
    histories: Sequence[npt.NDArray[np.int32]]
    candidates: npt.NDArray[np.int32] | None = None
    pools: Pools | None = None
    shown: int = 0  # demonstrations in a prompt
    selecting: Selecting | None = None
    votes: Sequence[npt.NDArray[np.int32]] | None = None

    def __len__(self) -> int:
        return len(self.histories)

    def take(self, rows: npt.NDArray[np.int64]) -> "Prompting":
        """The same of some of the examples."""
        return replace(
            self,
            histories=[self.histories[i] for i in rows.tolist()],
            candidates=None if self.candidates is None else self.candidates[rows],
            pools=None if self.pools is None else self.pools.take(rows),
            votes=None if self.votes is None else [self.votes[i] for i in rows.tolist()],
        )

    def selected(self, engine: Engine | None) -> list[Selected]:
        """Which users of each pool are shown: as the engine's model selects, or the first ones."""
        if self.pools is None:
            return [Selected((), ())] * len(self)
        if self.selecting is not None and engine is not None:
            return self.selecting.select(engine, self.histories, self.pools.neighbours)
        return [
            Selected(tuple(range(len(found)))[: self.shown], ()) for found in self.pools.neighbours
        ]

    def contexts(self, selected: Sequence[Selected]) -> list[Context]:
        """What each prompt shows beside its history; the most similar user stands first."""
        contexts = []
        for i, chosen in enumerate(selected):
            users = [] if self.pools is None else self.pools.neighbours[i]
            candidates = () if self.candidates is None else tuple(self.candidates[i].tolist())
            votes = () if self.votes is None else tuple(self.votes[i].tolist())
            shown = tuple(users[at].shown() for at in chosen.shown)
            contexts.append(Context(shown, candidates, votes))
        return contexts

    def shown_first(self) -> list[Context]:
        """What the prompts show before any model selects."""
        return self.contexts(self.selected(None))

    def ids(self, selected: Sequence[Selected] | None = None) -> list[Ids]:
        """Token ids of the prompts; without `selected` with the first users of the pools."""
        contexts = self.contexts(self.selected(None) if selected is None else selected)
        return [
            self.encoder.prompt(history, context).ids
            for history, context in zip(self.histories, contexts, strict=True)
        ]


def prompting_of(
    recipe: Recipe,
    folder: RunFolder,
    encoder: PromptEncoder,
    split: str,
    examples: Examples,
    candidates: npt.NDArray[np.int32] | None = None,
    keep: bool = True,
) -> Prompting:
    """The prompts of a split's examples; `candidates` (E, C) where they do not stand with the data.

    Similar users are found where they have not been, and kept in the run if `keep`. Raises
    RecipeError where the template shows none of what it should, DataError for candidates of other
    examples.
    """
    wanted = recipe.demonstrations
    asks = wanted.selection.ask if wanted is not None and wanted.selection is not None else None
    encoder.template.check_context(
        demonstrations=wanted is not None and wanted.shows_users,
        candidates=recipe.data.candidates is not None and recipe.prompt.task == "similar_users",
        selection=asks == "pointwise",
        votes=wanted is not None and wanted.shows_votes,
        selections=asks == "listwise",
        letters=recipe.prompt.letters,
    )
    if candidates is None and recipe.data.candidates is not None:
        candidates = read_candidates(folder.candidates(split))
        if len(candidates) != len(examples):
            raise DataError(
                f"{folder.candidates(split)}: {len(candidates)} rows for "
                f"{len(examples)} examples; run `llmrec prepare` again"
            )
    if wanted is None:
        return Prompting(encoder, examples.histories(), candidates)
    finder = SimilarUsers(recipe, folder)
    return demonstrated(recipe, encoder, finder, examples, candidates, split if keep else None)


def demonstrated(
    recipe: Recipe,
    encoder: PromptEncoder,
    finder: SimilarUsers,
    examples: Examples,
    candidates: npt.NDArray[np.int32] | None,
    split: str | None = None,
) -> Prompting:
    """The prompts of examples with what `finder` finds for them, kept for a `split` if one is told.

    The recipe has demonstrations.
    """
    wanted = finder.wanted
    pools = votes = None
    if wanted.shows_users:
        pools = finder.find(examples) if split is None else finder.of(split, examples)
    if wanted.shows_votes:
        votes = _votes(recipe, finder, examples, split, len(encoder.titles))
    selecting = Selecting(encoder, wanted) if wanted.selection is not None else None
    return Prompting(
        encoder, examples.histories(), candidates, pools, wanted.count, selecting, votes
    )


def _votes(
    recipe: Recipe, finder: SimilarUsers, examples: Examples, split: str | None, items: int
) -> list[npt.NDArray[np.int32]]:
    """For each example the titles that it shows as votes; see `Votes`."""
    wanted, histories = finder.wanted.votes, examples.histories()
    if wanted.pick == "random":
        drawn = []
        for example in examples:
            seen = np.unique(example.history)
            count = min(wanted.titles, items - len(seen))
            rng = generator_of(example, recipe.seed, RANDOM_TITLES)
            drawn.append(draw_unseen(seen, items, count, rng).astype(np.int32))
        return drawn
    if split is None:
        voters = finder.find(examples, wanted.users)
    else:
        voters = finder.voters(split, examples)
    return [
        tally([voter.titles for voter in pool], history).items[: wanted.titles]
        for pool, history in zip(voters.neighbours, histories, strict=True)
    ]
