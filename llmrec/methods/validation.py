"""Validation while training: how good the live model is on the validation users."""

from collections.abc import Callable
from functools import cache

import numpy as np
from torch import nn

from llmrec.data.candidates import candidate_nll, proposed, read_log_q
from llmrec.data.records import Examples
from llmrec.decoding.beam import Ranking
from llmrec.decoding.fusion import fused
from llmrec.errors import LlmrecError
from llmrec.evaluation.intervals import mean_interval
from llmrec.evaluation.metrics import hit_rate, ndcg
from llmrec.inference.engine import closed_items, live_engine
from llmrec.inference.grounded import TextGrounding
from llmrec.inference.prompting import prompting_of
from llmrec.model.trainer import Validated
from llmrec.recipe import Recipe
from llmrec.runs.folder import RunFolder
from llmrec.runs.processes import main_first
from llmrec.text.encoding import Ids, PromptEncoder


def validation_of(
    recipe: Recipe, folder: RunFolder, encoder: PromptEncoder
) -> Callable[[nn.Module], Validated]:
    """A function of the live model, which every process calls and shares in.

    It always gives the mean target likelihood, and HR and NDCG where the recipe chooses by one.
    """
    valid = Examples.read(folder.examples("valid"))
    wanted = recipe.validation
    # A ranking is as long as the cut-off, whatever the table's will be.
    decode = recipe.decode.model_copy(update={"top_k": wanted.k})
    with main_first():
        prompting = prompting_of(recipe, folder, encoder, "valid", valid)
    asked = np.arange(len(valid))
    if prompting.candidates is not None:  # a target that is not among them is a miss
        asked = np.flatnonzero(proposed(prompting.candidates, valid.targets))
        if not len(asked):
            raise LlmrecError(
                "no validation target is among its candidates; raise data.candidates.count or "
                "data.subset.valid"
            )
        prompting = prompting.take(asked)
    targets, histories = valid.targets[asked], prompting.histories
    closed = closed_items(histories, decode.filter_seen)
    grounded = TextGrounding(recipe, encoder)

    beside, log_q = recipe.objective.listwise, None
    if beside is not None and beside.fusion > 0:
        log_q = read_log_q(folder.candidates("valid"))[asked]
    engine_of = live_engine(encoder, decode)

    @cache
    def unselected() -> list[Ids]:
        return prompting.ids()

    def measure(model: nn.Module) -> Validated:
        engine = engine_of(model)
        selects = prompting.selecting is not None
        prompts = prompting.ids(prompting.selected(engine)) if selects else unselected()
        lists: list[Ranking] = []
        if prompting.candidates is not None:
            found = engine.choose(prompts, prompting.candidates, targets)
            lists, nll = found.rankings, found.nll
            if beside is not None and log_q is not None:
                lists, summed = fused(lists, prompting.candidates, log_q, beside.fusion)
                nll = candidate_nll(summed, prompting.candidates, targets)
        elif wanted.metric != "nll" and wanted.answer == "constrained":
            found = engine.rank(prompts, closed, targets=targets)
            lists, nll = found.rankings, found.nll
        else:
            nll = engine.nll(prompts, closed, targets)
        open_nll = nll[np.isfinite(nll)]  # a repeated item cannot be recommended
        if len(open_nll) == 0:
            raise LlmrecError(
                "no validation target can be recommended: all are in the histories; "
                "set decode.filter_seen: false"
            )
        interval = mean_interval(open_nll, seed=recipe.seed)
        figures = {"valid_nll": interval.mean, "low": interval.low, "high": interval.high}
        if wanted.metric == "nll":
            return Validated((interval.mean,), figures)
        if wanted.answer == "grounding":
            texts = grounded.written(engine, prompts)
            lists = grounded.rankings(model, texts, histories, wanted.k)
        positions = [ranking.positions for ranking in lists]
        values = [metric(positions, targets, wanted.k) for metric in (hit_rate, ndcg)]
        means = (np.stack(values, axis=1).sum(axis=0) / len(valid)).tolist()
        at_k = dict(zip(("hr", "ndcg"), means, strict=True))
        figures |= {f"valid_{name}@{wanted.k}": value for name, value in at_k.items()}
        return Validated((-at_k[wanted.metric], interval.mean), figures)

    return measure
