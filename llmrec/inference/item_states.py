"""Every title's state in the untuned model, kept in the cache: a table for grounding.

Keyed by the model's weights and the titles' token ids; a table whose bytes are not those that were
written is made again.
"""

import hashlib
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from llmrec.data.files import replacing, sha256_of, write_json
from llmrec.fetch.cache import cache_root
from llmrec.inference.from_recipe import base_of, weights_hash
from llmrec.model.states import text_states
from llmrec.recipe import Recipe
from llmrec.runs.folder import model_provenance
from llmrec.text.encoding import PromptEncoder

log = logging.getLogger("llmrec")


def item_states(recipe: Recipe, encoder: PromptEncoder, model: Any) -> npt.NDArray[np.float32]:
    """(N, d) states of the catalog's titles, read from the cache as needed."""
    key = _key(recipe, encoder)
    path, seal = (cache_root() / "states" / f"{key}.{kind}" for kind in ("npy", "json"))
    if not _whole(path, seal):
        log.info("states: reading %d titles with the untuned model", len(encoder.titles))
        table = text_states(model, [encoder.standing_alone(title) for title in encoder.titles])
        with replacing(path) as temporary, temporary.open("wb") as stream:
            np.save(stream, table, allow_pickle=False)
        write_json(seal, {"sha256": sha256_of(path)})
    loaded: npt.NDArray[np.float32] = np.load(path, mmap_mode="r", allow_pickle=False)
    return loaded


def _whole(path: Path, seal: Path) -> bool:
    try:
        return bool(json.loads(seal.read_text("utf-8"))["sha256"] == sha256_of(path))
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _key(recipe: Recipe, encoder: PromptEncoder) -> str:
    source = Path(base_of(recipe).source)
    about = {
        "model": {**model_provenance(recipe), "base": None},  # the weights count, not their name
        "weights": weights_hash(source) if source.is_dir() else None,
        "revision": None if source.is_dir() else [str(source), recipe.model.revision],
        "dtype": recipe.model.dtype,
        "quantization": recipe.model.quantization,
    }
    titles = hashlib.sha256()
    for title in encoder.titles:
        titles.update(encoder.standing_alone(title).tobytes() + b"\xff\xff\xff\xff")
    text = json.dumps({**about, "titles": titles.hexdigest()}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]
