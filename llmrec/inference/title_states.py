"""Vectors of titles: mean token states of the untuned language model, or of a sentence encoder."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from llmrec.data.catalog import Catalog
from llmrec.errors import LlmrecError
from llmrec.fetch.cache import model_path
from llmrec.recipe import Recipe


def state_vectors(recipe: Recipe, catalog: Catalog) -> npt.NDArray[np.float32]:
    """(N, d) of length 1: each title's mean token state in the recipe's untuned model.

    The mean over the catalog is taken off first: states of a language model all point the same way.
    """
    from llmrec.inference.from_recipe import base_of, encoder_of
    from llmrec.model.loading import load_model
    from llmrec.model.states import text_states

    encoder, model = encoder_of(recipe, catalog), load_model(base_of(recipe))
    texts = [encoder.standing_alone(title) for title in catalog.titles]
    return _of_length_one(text_states(model, texts, mean=True))


def sentence_vectors(name: str, titles: Sequence[str]) -> npt.NDArray[np.float32]:
    """(N, d) of length 1: the titles under a sentence encoder, less their mean.

    `name`: one that `llmrec fetch model` knows, a Hub id or a folder. Raises LlmrecError where the
    package or the encoder is missing.
    """
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError:
        raise LlmrecError(
            "demonstrations.similarity.vectors is sentences, which needs sentence-transformers; "
            "pip install 'llmrec[embed]', or take vectors factors, which need no model"
        ) from None
    place = str(model_path(name))
    try:
        encoder = SentenceTransformer(place, device="cpu")
    except (OSError, ValueError) as error:
        raise LlmrecError(
            f"demonstrations.similarity.encoder {name!r}: no sentence encoder could be loaded from "
            f"{place} ({error}); name a folder, a Hub id, or all-minilm-l6-v2"
        ) from None
    found = encoder.encode(list(titles), show_progress_bar=False, convert_to_numpy=True)
    return _of_length_one(np.asarray(found, np.float32))


def _of_length_one(vectors: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    centred = vectors - vectors.mean(axis=0)
    lengths = np.linalg.norm(centred, axis=1, keepdims=True)
    return (centred / np.maximum(lengths, 1e-12)).astype(np.float32)
