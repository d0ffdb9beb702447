"""Validation while training: how good the live model is on the validation users."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from torch import nn

from llmrec.data.records import Examples
from llmrec.decoding.beginning import beginning_of
from llmrec.errors import LlmrecError
from llmrec.evaluation.intervals import mean_interval
from llmrec.evaluation.metrics import hit_rate, ndcg
from llmrec.inference.engine import ranked_and_scored, scored_paths, steps_of
from llmrec.inference.grounded import Grounded
from llmrec.inference.prompting import prompting_of
from llmrec.model.trainer import Validated
from llmrec.recipe import Recipe
from llmrec.runs.batch_files import batches
from llmrec.runs.folder import RunFolder
from llmrec.runs.processes import gathered, processes, share_of
from llmrec.text.encoding import Ids, PromptEncoder


def validation_of(
    recipe: Recipe, folder: RunFolder, encoder: PromptEncoder
) -> Callable[[nn.Module], Validated]:
    """A function of the live model, which every process calls and shares in.

    It always gives the mean target likelihood, and HR and NDCG where the recipe chooses by one.
    """
    valid = Examples.read(folder.examples("valid"))
    wanted, decode = recipe.validation, recipe.decode
    mine = share_of(len(valid))
    shown = valid.take(mine)
    with processes().main_process_first():
        prompting = prompting_of(recipe, folder, encoder, "valid", valid).take(mine)
    # A ranking is as long as the cut-off, whatever the table's will be.
    ranked = decode.model_copy(update={"top_k": wanted.k})

    def prompts_of(model: nn.Module) -> list[Ids]:
        return prompting.ids(prompting.selected(model))

    def likelihoods(model: nn.Module) -> npt.NDArray[np.float64]:
        if prompting.candidates is not None:
            return rankings(model)
        values = np.empty((len(mine), 1))
        for batch, paths in scored_paths(
            model,
            encoder,
            shown,
            prompts=prompts_of(model),
            batch_size=decode.batch_size,
            filter_seen=decode.filter_seen,
            steps=steps_of(model, decode),
        ):
            values[batch, 0] = paths.nll()
        return values

    def rankings(model: nn.Module) -> npt.NDArray[np.float64]:
        values = np.empty((len(mine), 3))
        prompts = prompts_of(model)
        beginning, steps = beginning_of(model, prompts), steps_of(model, decode)
        for batch in batches(list(map(len, prompts)), decode.batch_size):
            asked, among = shown.take(batch), prompting.candidates
            found, values[batch, 0] = ranked_and_scored(
                model,
                encoder,
                asked,
                ranked,
                prompts=[prompts[i] for i in batch],
                beginning=beginning,
                candidates=None if among is None else among[batch],
                steps=steps,
            )
            lists = [ranking.positions for ranking in found]
            values[batch, 1] = hit_rate(lists, asked.targets, wanted.k)
            values[batch, 2] = ndcg(lists, asked.targets, wanted.k)
        return values

    grounded = Grounded(recipe, encoder)

    def groundings(model: nn.Module) -> npt.NDArray[np.float64]:
        values = np.empty((len(mine), 3))
        values[:, 0] = likelihoods(model)[:, 0]
        histories, prompts = shown.histories(), prompts_of(model)
        beginning = beginning_of(model, prompts)
        for batch in batches(list(map(len, histories)), decode.batch_size):
            asked = [histories[i] for i in batch]
            texts = grounded.written(model, asked, [prompts[i] for i in batch], beginning)
            lists = [r.positions for r in grounded.rankings(model, texts, asked, wanted.k)]
            values[batch, 1] = hit_rate(lists, shown.targets[batch], wanted.k)
            values[batch, 2] = ndcg(lists, shown.targets[batch], wanted.k)
        return values

    def measure(model: nn.Module) -> Validated:
        if wanted.metric == "nll":
            found = likelihoods(model)
        else:
            found = (rankings if wanted.answer == "constrained" else groundings)(model)
        values = gathered(found, len(valid))
        nll = values[np.isfinite(values[:, 0]), 0]  # a repeated item cannot be recommended
        if len(nll) == 0:
            raise LlmrecError(
                "no validation target can be recommended: all are in the histories; "
                "set decode.filter_seen: false"
            )
        interval = mean_interval(nll, seed=recipe.seed)
        figures = {"valid_nll": interval.mean, "low": interval.low, "high": interval.high}
        if wanted.metric == "nll":
            return Validated((interval.mean,), figures)
        at_k = dict(zip(("hr", "ndcg"), values[:, 1:].mean(axis=0).tolist(), strict=True))
        figures |= {f"valid_{name}@{wanted.k}": value for name, value in at_k.items()}
        return Validated((-at_k[wanted.metric], interval.mean), figures)

    return measure
