"""Vectors of titles: states of the untuned language model, or those of a sentence encoder.

The states that grounding compares are kept in the cache, by the model's weights and the titles'
token ids; a table whose bytes are not those that were written is made again.
"""

import hashlib
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError

from llmrec.data.catalog import Catalog
from llmrec.errors import LlmrecError
from llmrec.fetch.cache import model_path
from llmrec.inference.from_recipe import base_of, encoder_of
from llmrec.model.loading import load_model
from llmrec.model.states import text_states
from llmrec.model.trust import require_safe_encoder
from llmrec.recipe import Recipe
from llmrec.retrieval.vectors import unit
from llmrec.runs import made
from llmrec.text.encoding import PromptEncoder

log = logging.getLogger("llmrec")
Floats = npt.NDArray[np.float32]


def item_states(recipe: Recipe, encoder: PromptEncoder, model: Any) -> Floats:
    """(N, d) states of the catalog's titles at their last tokens, read from the cache as needed."""
    artifact = made.states(recipe, _hash_of(encoder))
    if artifact.facts_or_none() is None:
        log.info("states: reading %d titles with the untuned model", len(encoder.titles))
        table = text_states(model, [encoder.standing_alone(title) for title in encoder.titles])
        with artifact.staging() as staged:
            with staged.open("wb") as stream:
                np.save(stream, table, allow_pickle=False)
            artifact.seal(staged)
    loaded: Floats = np.load(artifact.place, mmap_mode="r", allow_pickle=False)
    return loaded


Reader = Callable[[Sequence[str]], Floats]


def state_reader(recipe: Recipe, catalog: Catalog) -> Reader:
    """What gives texts their mean token states (T, d) in the recipe's untuned model, loaded now."""
    encoder, model = encoder_of(recipe, catalog), load_model(base_of(recipe))
    return lambda texts: text_states(model, [encoder.standing_alone(t) for t in texts], mean=True)


def state_vectors(recipe: Recipe, catalog: Catalog) -> Floats:
    """(N, d) of length 1: each title's mean token state in the recipe's untuned model.

    The mean over the catalog is taken off first: states of a language model all point the same way.
    """
    return _directions(state_reader(recipe, catalog)(catalog.titles))


def sentence_vectors(
    name: str, titles: Sequence[str], named_by: str = "demonstrations.similarity.encoder"
) -> Floats:
    """(N, d) of length 1: the titles under a sentence encoder, less their mean.

    See `sentence_reader`.
    """
    return _directions(sentence_reader(name, named_by)(titles))


def sentence_reader(name: str, named_by: str = "demonstrations.similarity.encoder") -> Reader:
    """What gives texts their vectors (T, d) under a sentence encoder, loaded now.

    `name`: one that `llmrec fetch model` knows, a Hub id or a folder; `named_by`: the recipe's key
    that names it. Raises LlmrecError where the package or the encoder is missing.
    """
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError:
        raise LlmrecError(
            f"{named_by} is a sentence encoder, which needs sentence-transformers; pip install "
            "'llmrec[embed]', or take what needs no model: vectors factors, system text_knn"
        ) from None
    place = str(model_path(name))
    if Path(place).is_dir():
        require_safe_encoder(Path(place))
    try:
        encoder = SentenceTransformer(
            place,
            device="cuda" if torch.cuda.is_available() else "cpu",
            trust_remote_code=False,
            model_kwargs={"use_safetensors": True},
        )
    except (OSError, ValueError, SafetensorError) as error:
        raise LlmrecError(
            f"{named_by} {name!r}: no sentence encoder could be loaded from "
            f"{place} ({error}); name a folder, a Hub id, or all-minilm-l6-v2"
        ) from None

    def read(texts: Sequence[str]) -> Floats:
        found = encoder.encode(list(texts), show_progress_bar=False, convert_to_numpy=True)
        return np.asarray(found, np.float32)

    return read


def _directions(vectors: Floats) -> Floats:
    """How each of (N, d) vectors differs from their mean, brought to length 1."""
    return unit(vectors - vectors.mean(axis=0))


def _hash_of(encoder: PromptEncoder) -> str:
    """SHA-256 over the titles' tokens."""
    titles = hashlib.sha256()
    for title in encoder.titles:
        titles.update(encoder.standing_alone(title).tobytes() + b"\xff\xff\xff\xff")
    return titles.hexdigest()
