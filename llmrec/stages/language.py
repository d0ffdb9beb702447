"""From a recipe to a language model with its tokenizer and prompts; shared by the stages."""

import hashlib
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from torch import nn

from llmrec import shipped
from llmrec.data.candidates import candidate_nll
from llmrec.data.catalog import Catalog
from llmrec.data.files import sha256_of
from llmrec.data.records import Examples
from llmrec.decoding.beam import Ranking, Scoring, beam_search, certified_search
from llmrec.decoding.beginning import Beginning, beginning_of
from llmrec.decoding.best_first import best_first
from llmrec.decoding.candidates import candidate_ranking, candidate_scores
from llmrec.decoding.fixed_steps import FixedSteps
from llmrec.decoding.likelihood import PathScores, path_scores
from llmrec.decoding.open_items import OpenItems
from llmrec.decoding.shared_prompt import SharedPrompt
from llmrec.errors import LlmrecError, RecipeError
from llmrec.model.loading import BaseModel, load_tokenizer
from llmrec.recipe import Recipe
from llmrec.recipe_decoding import Decode
from llmrec.stages.fetch import model_path
from llmrec.stages.folder import RunFolder
from llmrec.stages.parts import batches
from llmrec.text.encoding import Ids, PromptEncoder
from llmrec.text.templates import PromptTemplate

log = logging.getLogger("llmrec")
WIDEST = 640  # beams of a user, at most, that a proof is sought with
FARTHEST = 2048  # tokens behind a prompt, about, that best-first search may read for a proof


def processes() -> PartialState:
    """The processes that a launcher started, this one alone without a launcher."""
    # Without `cpu` accelerate does not join processes on a machine that has no GPU.
    return PartialState(cpu=not torch.cuda.is_available())


def share_of(count: int) -> npt.NDArray[np.int64]:
    """Which of `count` things this process does.

    Processes do equally many, as sharded models demand, so some are done twice.
    """
    state = processes()
    share = -(-count // state.num_processes)
    return (np.arange(share) + state.process_index * share) % count


def gathered(values: npt.NDArray[np.float64], count: int) -> npt.NDArray[np.float64]:
    """The rows that all processes found for their `share_of(count)`, (count, ...), in order."""
    return np.array(gather_object(values.tolist()))[:count]


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


def encoder_of(recipe: Recipe, catalog: Catalog, folder: RunFolder | None = None) -> PromptEncoder:
    """The recipe's prompts over a catalog, under its model's tokenizer.

    `folder`: a run whose processes share a large catalog's trie.
    """
    prompt = recipe.prompt
    return PromptEncoder(
        template_of(recipe), load_tokenizer(base_of(recipe)), catalog.titles, form=prompt.form,
        max_history=prompt.max_history, max_tokens=prompt.max_tokens,
        tries=None if folder is None else folder.trie,
    )  # fmt: skip


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
        yield batch, path_scores(
            SharedPrompt(model, [prompts[i] for i in batch], beginning, steps),
            encoder.completions, [int(t) for t in examples.targets[batch]],
            OpenItems(encoder.trie, closed, q),
        )  # fmt: skip


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
        return best_first(prompts, open_items, top_k=top_k, scoring=scoring,
                          most=FARTHEST).rankings  # fmt: skip
    beams = max(decode.width, top_k)
    if decode.kind == "certified":
        return certified_search(prompts, open_items, beams=beams, top_k=top_k, scoring=scoring,
                                widest=max(beams, WIDEST))  # fmt: skip
    return beam_search(prompts, open_items, beams=beams, top_k=top_k, scoring=scoring)


def closed_items(
    histories: Sequence[npt.NDArray[np.int32]], filter_seen: bool
) -> list[npt.NDArray[np.int32]]:
    """What each user may not be recommended: the history, or nothing."""
    return [history if filter_seen else history[:0] for history in histories]


def adapter_of(recipe: Recipe, folder: RunFolder, system: str = "tuned") -> Path:
    """The adapter that a tuned system answers with: the recipe's, or else the run's own."""
    if system == "tuned_sft":
        return sft_adapter_of(recipe, folder)
    return Path(recipe.model.adapter) if recipe.model.adapter else folder.adapter


def sft_adapter_of(recipe: Recipe, folder: RunFolder) -> Path:
    """The fine-tuned adapter whose answers SOFT distils: the recipe's, or else the run's own."""
    given = recipe.soft.sft_adapter if recipe.soft else None
    return Path(given) if given else folder.sft.adapter


def weights_hash(tuned: Path) -> str:
    """SHA-256 over the weights in an adapter's folder. Raises LlmrecError where there are none."""
    weights = sorted(tuned.glob("*.safetensors"))
    if not weights:
        raise LlmrecError(
            f"{tuned}: no trained weights; run `llmrec train` first or name another adapter"
        )
    return hashlib.sha256("".join(map(sha256_of, weights)).encode()).hexdigest()
