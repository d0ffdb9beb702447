"""From a recipe to a language model with its tokenizer and prompts; shared by the stages."""

import logging
from datetime import date
from pathlib import Path

from llmrec.data.catalog import Catalog
from llmrec.fetch.cache import model_path
from llmrec.model.loading import BaseModel, embedding_rows, load_tokenizer
from llmrec.recipe import Recipe
from llmrec.runs.folder import RunFolder
from llmrec.text.encoding import PromptEncoder
from llmrec.text.templates import PromptTemplate

log = logging.getLogger("llmrec")


def base_of(recipe: Recipe) -> BaseModel:
    """What to load, the model brought into the cache if its name is one that fetch knows."""
    settings = recipe.model
    return BaseModel(
        str(model_path(settings.base)),
        settings.revision,
        settings.dtype,
        settings.quantization,
        settings.trust_remote_code,
    )


def template_of(recipe: Recipe) -> PromptTemplate:
    """The recipe's own template file, or the shipped one of its task and domain."""
    prompt = recipe.prompt
    if prompt.file:
        return PromptTemplate.from_file(prompt.file)
    return PromptTemplate.from_name(f"{prompt.task}/{prompt.domain}")


def encoder_of(recipe: Recipe, catalog: Catalog, folder: RunFolder | None = None) -> PromptEncoder:
    """The recipe's prompts over a catalog, under its model's tokenizer.

    `folder`: a run whose processes share a large catalog's trie.
    """
    prompt, base = recipe.prompt, base_of(recipe)
    return PromptEncoder(
        template_of(recipe),
        load_tokenizer(base),
        catalog.titles,
        form=prompt.form,
        max_history=prompt.max_history,
        max_tokens=prompt.max_tokens,
        tries=None if folder is None else folder.trie,
        today=date.fromisoformat(prompt.today),
        rows=embedding_rows(base),
        letters=prompt.letters,
    )


def adapter_of(recipe: Recipe, folder: RunFolder) -> Path:
    """The adapter to answer with: the recipe's, or else the run's own."""
    return Path(recipe.model.adapter) if recipe.model.adapter else folder.adapter


def sft_adapter_of(recipe: Recipe, folder: RunFolder) -> Path:
    """The fine-tuned adapter whose answers SOFT distils: the recipe's, or else the run's own."""
    given = recipe.soft.sft_adapter if recipe.soft else None
    return Path(given) if given else folder.sft.adapter
