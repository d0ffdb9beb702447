"""From a recipe to a language model with its tokenizer and prompts; shared by the stages."""

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from accelerate import PartialState
from torch import nn

from llmrec import shipped
from llmrec.data.catalog import Catalog
from llmrec.data.records import Examples
from llmrec.decoding.likelihood import PathScores, path_scores
from llmrec.decoding.open_items import OpenItems
from llmrec.decoding.shared_prompt import SharedPrompt
from llmrec.model.loading import BaseModel, load_tokenizer
from llmrec.recipe import Recipe
from llmrec.stages.fetch import model_path
from llmrec.text.encoding import PromptEncoder
from llmrec.text.templates import PromptTemplate

log = logging.getLogger("llmrec")


def processes() -> PartialState:
    """The processes that a launcher started, this one alone without a launcher."""
    # Without `cpu` accelerate does not join processes on a machine that has no GPU.
    return PartialState(cpu=not torch.cuda.is_available())


def base_of(recipe: Recipe) -> BaseModel:
    """What to load, the model brought into the cache if its name is one that fetch knows."""
    settings = recipe.model
    return BaseModel(
        str(model_path(settings.base)), settings.revision, settings.dtype, settings.quantization,
        settings.trust_remote_code,
    )  # fmt: skip


def template_of(recipe: Recipe) -> PromptTemplate:
    """The recipe's own template file, or the shipped one of its task and domain."""
    prompt = recipe.prompt
    if prompt.file:
        return PromptTemplate.from_file(prompt.file)
    return PromptTemplate.from_file(shipped.prompts() / prompt.task / f"{prompt.domain}.jinja")


def encoder_of(recipe: Recipe, catalog: Catalog) -> PromptEncoder:
    """The recipe's prompts over a catalog, under its model's tokenizer."""
    prompt = recipe.prompt
    return PromptEncoder(
        template_of(recipe), load_tokenizer(base_of(recipe)), catalog.titles, form=prompt.form,
        max_history=prompt.max_history, max_tokens=prompt.max_tokens,
    )  # fmt: skip


def batches(lengths: Sequence[int], size: int) -> list[npt.NDArray[np.int64]]:
    """Indices in groups of `size` of like length, longest first, so that little is padding."""
    order = np.argsort(-np.asarray(lengths), kind="stable")
    return [order[i : i + size] for i in range(0, len(order), size)]


def scored_paths(
    model: nn.Module,
    encoder: PromptEncoder,
    examples: Examples,
    *,
    filter_seen: bool,
    batch_size: int,
    probabilities: npt.NDArray[np.float64] | None = None,
) -> Iterator[tuple[npt.NDArray[np.int64], PathScores]]:
    """The choices on the way to each example's target, batch by batch, with the example numbers.

    `probabilities` (E, N): a baseline's, for guidance.
    """
    histories = examples.histories()
    prompts = [encoder.prompt(history).ids for history in histories]
    for batch in batches([len(p) for p in prompts], batch_size):
        closed = closed_items([histories[i] for i in batch], filter_seen)
        q = None if probabilities is None else probabilities[batch]
        yield batch, path_scores(
            SharedPrompt(model, [prompts[i] for i in batch]), encoder.completions,
            [int(t) for t in examples.targets[batch]], OpenItems(encoder.trie, closed, q),
        )  # fmt: skip


def closed_items(
    histories: Sequence[npt.NDArray[np.int32]], filter_seen: bool
) -> list[npt.NDArray[np.int32]]:
    """What each user may not be recommended: the history, or nothing."""
    return [history if filter_seen else history[:0] for history in histories]


def adapter_of(recipe: Recipe, own: Path) -> Path:
    """The adapter to recommend with: the recipe's, or else the run's own."""
    return Path(recipe.model.adapter) if recipe.model.adapter else own
