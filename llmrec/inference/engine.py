"""The one way to ask a language model: rankings and target likelihoods, batch by batch."""

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
from torch import nn

from llmrec.data.candidates import candidate_nll
from llmrec.data.records import Examples
from llmrec.decoding.beam import Ranking, Scoring, beam_search, certified_search
from llmrec.decoding.beginning import Beginning, beginning_of
from llmrec.decoding.best_first import best_first
from llmrec.decoding.candidates import candidate_ranking, candidate_scores
from llmrec.decoding.fixed_steps import FixedSteps
from llmrec.decoding.likelihood import PathScores, path_scores
from llmrec.decoding.open_items import OpenItems
from llmrec.decoding.shared_prompt import SharedPrompt
from llmrec.errors import RecipeError
from llmrec.recipe.decoding import Decode
from llmrec.runs.batch_files import batches
from llmrec.text.encoding import Ids, PromptEncoder

WIDEST = 640  # beams of a user, at most, that a proof is sought with


FARTHEST = 2048  # tokens behind a prompt, about, that best-first search may read for a proof


def steps_of(model: nn.Module, decode: Decode) -> FixedSteps | None:
    """What runs a search's passes where the recipe wants graphs, for the model as it now is.

    Raises RecipeError where it is on no CUDA GPU.
    """
    if not decode.cuda_graphs:
        return None
    device = next(model.parameters()).device
    if device.type != "cuda":
        raise RecipeError(
            f"decode.cuda_graphs: true needs a CUDA GPU, and the model is on {device}; set "
            "decode.cuda_graphs=false"
        )
    return FixedSteps(model)


def scored_paths(
    model: nn.Module,
    encoder: PromptEncoder,
    examples: Examples,
    *,
    filter_seen: bool,
    batch_size: int,
    prompts: Sequence[Ids] | None = None,
    probabilities: npt.NDArray[np.float64] | None = None,
    steps: FixedSteps | None = None,
) -> Iterator[tuple[npt.NDArray[np.int64], PathScores]]:
    """The choices on the way to each example's target, batch by batch, with the example numbers.

    `prompts`: their tokens, where they show more than the histories. `probabilities` (E, N): a
    baseline's, for guidance. `steps`: of this model, as `steps_of` gives them.
    """
    histories = examples.histories()
    if prompts is None:
        prompts = [encoder.prompt(history).ids for history in histories]
    beginning = beginning_of(model, prompts)
    for batch in batches([len(p) for p in prompts], batch_size):
        closed = closed_items([histories[i] for i in batch], filter_seen)
        q = None if probabilities is None else probabilities[batch]
        yield (
            batch,
            path_scores(
                SharedPrompt(model, [prompts[i] for i in batch], beginning, steps),
                encoder.completions,
                [int(t) for t in examples.targets[batch]],
                OpenItems(encoder.trie, closed, q),
            ),
        )


def ranked_and_scored(
    model: nn.Module,
    encoder: PromptEncoder,
    examples: Examples,
    decode: Decode,
    *,
    prompts: Sequence[Ids] | None = None,
    beginning: Beginning | None = None,
    candidates: npt.NDArray[np.int32] | None = None,
    weight: float = 1.0,
    probabilities: npt.NDArray[np.float64] | None = None,
    steps: FixedSteps | None = None,
) -> tuple[list[Ranking], npt.NDArray[np.float64]]:
    """For one batch of E examples, what the constrained decoder ranks, and the target's NLL (E,).

    `prompts`: their tokens, where they show more than the histories; `beginning`: what those of all
    batches begin with. `candidates` (E, C): all of these are ranked instead, and the NLL is among
    them. `weight` of the model against `probabilities` (E, N), a baseline's, for guidance. `steps`:
    of this model, as `steps_of` gives them.
    """
    histories = examples.histories()
    if prompts is None:
        prompts = [encoder.prompt(history).ids for history in histories]
    shared = SharedPrompt(model, prompts, beginning, steps)
    if candidates is not None:
        scores = candidate_scores(shared, encoder.completions, candidates, decode.renormalise)
        ranked = [candidate_ranking(*row) for row in zip(candidates, scores, strict=True)]
        return ranked, candidate_nll(scores, candidates, examples.targets)
    closed = closed_items(histories, decode.filter_seen)
    open_items = OpenItems(encoder.trie, closed, probabilities)
    rankings = searched(shared, open_items, decode, decode.top_k, weight)
    paths = path_scores(shared, encoder.completions, examples.targets.tolist(), open_items)
    return rankings, paths.nll(weight)


def searched(
    prompts: SharedPrompt, open_items: OpenItems, decode: Decode, top_k: int, weight: float = 1.0
) -> list[Ranking]:
    """The `top_k` items of each user by the recipe's search; beams are as many as that at least."""
    scoring = Scoring(decode.renormalise, weight)
    if decode.kind == "best_first":
        return best_first(prompts, open_items, top_k=top_k, scoring=scoring, most=FARTHEST).rankings
    beams = max(decode.width, top_k)
    if decode.kind == "certified":
        return certified_search(
            prompts,
            open_items,
            beams=beams,
            top_k=top_k,
            scoring=scoring,
            widest=max(beams, WIDEST),
        )
    return beam_search(prompts, open_items, beams=beams, top_k=top_k, scoring=scoring)


def closed_items(
    histories: Sequence[npt.NDArray[np.int32]], filter_seen: bool
) -> list[npt.NDArray[np.int32]]:
    """What each user may not be recommended: the history, or nothing."""
    return [history if filter_seen else history[:0] for history in histories]
