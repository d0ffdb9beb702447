"""A model as `llmrec export --merge` writes it, ready for plain `generate` of transformers.

Holds the catalog, the prompts and the trie of the folder; the model is loaded with
`AutoModelForCausalLM`. Needs neither a run nor a recipe.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from transformers import AutoTokenizer

from llmrec.data.catalog import Catalog
from llmrec.decoding.grounding import Entry, Grounder
from llmrec.decoding.logits_processor import TrieLogitsProcessor
from llmrec.errors import DataError, LlmrecError
from llmrec.inference.engine import closed_items
from llmrec.text import trie_files
from llmrec.text.encoding import PromptEncoder
from llmrec.text.templates import PromptTemplate
from llmrec.text.trie import TitleTrie, UnreachablePrefixError

FACTS, CATALOG, TEMPLATE, TRIE = "llmrec.json", "catalog.parquet", "template.jinja", "trie"


@dataclass(frozen=True)
class Exported:
    """Catalog, prompts and trie of an exported model; `facts`: what `llmrec.json` says."""

    catalog: Catalog
    encoder: PromptEncoder
    trie: TitleTrie
    facts: dict[str, Any]

    @staticmethod
    def from_pretrained(folder: str | Path) -> "Exported":
        """From an exported folder. Raises DataError for one that is none, or is damaged."""
        root = Path(folder)
        try:
            facts = json.loads((root / FACTS).read_text("utf-8"))
            settings = facts["prompt"]
            catalog = Catalog.read(root / CATALOG)
        except (OSError, ValueError, KeyError) as error:
            raise DataError(f"{root} is no model that llmrec exported ({error})") from None
        if settings["task"] != "next_item":
            raise LlmrecError(
                f"{root}: its prompts show more than a history, which the run has; serve the run"
            )
        encoder = PromptEncoder(
            PromptTemplate.from_file(root / TEMPLATE),
            AutoTokenizer.from_pretrained(root, local_files_only=True),
            catalog.titles,
            form=settings["form"],
            max_history=settings["max_history"],
            max_tokens=settings["max_tokens"],
            today=date.fromisoformat(settings["today"]),
        )
        return Exported(catalog, encoder, trie_files.read(root / TRIE, facts["trie"]), facts)

    def positions(self, history: Sequence[Entry]) -> npt.NDArray[np.int32]:
        """(H,) positions of ids and titles. Raises DataError for one that is unknown."""
        found = Grounder(self.catalog).ground([*history])
        for entry, hit in zip(history, found, strict=True):
            if hit.position < 0:
                raise DataError(f"{entry!r} is no item of the catalog, or more than one")
        return np.array([hit.position for hit in found], np.int32)

    def inputs(self, histories: Sequence[Sequence[Entry]]) -> dict[str, torch.Tensor]:
        """`input_ids` and `attention_mask` (U, S) of the prompts, padded in front."""
        prompts = [self.encoder.prompt(self.positions(history)).ids for history in histories]
        length = max(map(len, prompts))
        ids = np.full((len(prompts), length), self.encoder.tokenizer.eos_token_id)
        mask = np.zeros_like(ids)
        for row, prompt in enumerate(prompts):
            ids[row, length - len(prompt) :] = prompt
            mask[row, length - len(prompt) :] = 1
        return {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask)}

    def generation(self, histories: Sequence[Sequence[Entry]], top_k: int) -> dict[str, Any]:
        """What `generate` is given to list the `top_k` best items after each history."""
        inputs, end = self.inputs(histories), int(self.encoder.tokenizer.eos_token_id)
        positions = [self.positions(history) for history in histories]
        processor = TrieLogitsProcessor(
            self.trie,
            inputs["input_ids"].shape[1],
            end,
            closed_items(positions, self.facts["filter_seen"]),
            self.facts["renormalise"],
        )
        return {
            **inputs,
            "logits_processor": [processor],
            "num_beams": top_k,
            "num_return_sequences": top_k,
            "max_new_tokens": self.facts["longest_title"],
            "do_sample": False,
            "length_penalty": 0.0,
            "eos_token_id": end,
            "pad_token_id": end,
        }

    def recommend(
        self, model: Any, histories: Sequence[Sequence[Entry]], top_k: int
    ) -> list[list[tuple[str, str, float]]]:
        """Item id, title and score of the `top_k` best after each history, by plain `generate`."""
        settings = self.generation(histories, top_k)
        settings |= {
            name: settings[name].to(model.device) for name in ("input_ids", "attention_mask")
        }
        with torch.inference_mode():
            out = model.generate(**settings, return_dict_in_generate=True, output_scores=True)
        rows = out.sequences[:, settings["input_ids"].shape[1] :].tolist()
        scores = getattr(out, "sequences_scores", None)  # of a single beam transformers has none
        found = [
            (self.item(tokens), float("nan") if scores is None else float(scores[row]))
            for row, tokens in enumerate(rows)
        ]
        lists = [found[n * top_k : (n + 1) * top_k] for n in range(len(histories))]
        return [[(*item, score) for item, score in one if item is not None] for one in lists]

    def item(self, written: Sequence[int]) -> tuple[str, str] | None:
        """Id and title of the item whose tokens were written; None for a beam that is no item."""
        end = int(self.encoder.tokenizer.eos_token_id)
        if end not in written:
            return None
        try:
            node = int(self.trie.walk(written[: written.index(end) + 1])[-1])
        except UnreachablePrefixError:
            return None
        position = int(self.trie.items_at(node)[0])
        return self.catalog.item_ids[position], self.catalog.titles[position]
