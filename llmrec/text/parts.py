"""Parts of a prompt to token ids: its beginning, its words further on, and titles as data.

Parts are encoded apart and joined, so a part inside must not get the blank that some tokenizers
put before every text, and a title must not become a control token: both are encoded by copies of
the tokenizer, without that blank, for titles without its added tokens too. Knows no template.
"""

import hashlib
import json
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from llmrec.errors import RecipeError

Ids = npt.NDArray[np.int32]
_NO_TEXT = "\ufdd0"  # is no character, so no text holds it


class Parts:
    """Encodes parts of prompts under one tokenizer.

    `rows`: how many rows the model's embedding has; RecipeError names a token beyond them.
    """

    def __init__(self, tokenizer: Any, rows: int | None = None) -> None:
        self.tokenizer, self.rows = tokenizer, rows
        # One that is no tokenizers.Tokenizer inside puts no blank anywhere that could be taken off.
        self._inner = getattr(tokenizer, "backend_tokenizer", None)

    @cached_property
    def bos(self) -> int | None:
        """The begin token's id, if this tokenizer puts one before a text."""
        bos = self.tokenizer.bos_token_id
        begins = self.tokenizer("a")["input_ids"][:1]
        return int(bos) if bos is not None and begins == [bos] else None

    def beginning(self, text: str) -> Ids:
        """The words a prompt begins with, the begin token in front where there is one, once."""
        ids = self._checked(self.tokenizer(text, add_special_tokens=False)["input_ids"])
        if self.bos is None or self.bos in ids[:1]:
            return ids
        return np.concatenate([[self.bos], ids]).astype(np.int32)

    def inside(self, texts: Sequence[str]) -> list[Ids]:
        """Words of a template that stand behind others; control tokens in them are meant."""
        if self._inner is None:
            found = self.tokenizer(list(texts), add_special_tokens=False)["input_ids"]
        else:
            found = [e.ids for e in self._words.encode_batch(texts, add_special_tokens=False)]
        return [self._checked(ids) for ids in found]

    def titles(self, texts: Sequence[str]) -> list[Ids]:
        """Texts that are data: whatever they hold, they become no added token.

        Raises RecipeError where one would all the same.
        """
        if not texts:
            return []
        if self._inner is None:
            found = self.tokenizer(
                list(texts), add_special_tokens=False, split_special_tokens=True
            )["input_ids"]
        else:
            found = [e.ids for e in self._data.encode_batch(texts, add_special_tokens=False)]
        ids = [self._checked(of_one) for of_one in found]
        for text, of_one in zip(texts, ids, strict=True):
            if self._control.intersection(of_one.tolist()):
                token = self.tokenizer.convert_ids_to_tokens(
                    min(self._control.intersection(of_one.tolist()))
                )
                raise RecipeError(
                    f"title {text!r} holds {token!r}, which this tokenizer cannot but take for its "
                    "control token; give the item another title"
                )
        return ids

    @cached_property
    def digest(self) -> str | None:
        """SHA-256 over all that titles' ids depend on but the titles; None: it cannot be told."""
        if self._inner is None:
            return None
        said = [self._data.to_str(), sorted(self._control), self.rows]
        return hashlib.sha256(json.dumps(said).encode()).hexdigest()

    @cached_property
    def _control(self) -> frozenset[int]:
        """Ids of added tokens; the one for unknown characters controls nothing."""
        return frozenset(self.tokenizer.added_tokens_decoder) - {self.tokenizer.unk_token_id}

    @cached_property
    def _words(self) -> Tokenizer:
        return Tokenizer.from_str(json.dumps(self._without_blank()))

    @cached_property
    def _data(self) -> Tokenizer:
        return Tokenizer.from_str(json.dumps(_without_added_tokens(self._without_blank())))

    def _without_blank(self) -> dict[str, Any]:
        inner: Any = self._inner
        said: dict[str, Any] = json.loads(inner.to_str())
        for step in ("normalizer", "pre_tokenizer"):
            said[step] = _never_prepending(said[step])
        return said | {"truncation": None, "padding": None, "post_processor": None}

    def _checked(self, ids: Sequence[int]) -> Ids:
        found = np.array(ids, np.int32)
        if self.rows is not None and len(found) and int(found.max()) >= self.rows:
            at = int(found.max())
            raise RecipeError(
                f"the tokenizer's token {self.tokenizer.convert_ids_to_tokens(at)!r} has id {at}, "
                f"and the model's embedding has {self.rows} rows; take the tokenizer that belongs "
                "to the model, or resize the model's embedding and save it again"
            )
        return found


def _never_prepending(step: dict[str, Any] | None) -> dict[str, Any] | None:
    """A step of a tokenizer without the blank that it puts before a text."""
    if step is None or step["type"] == "Prepend":
        return None
    for several in ("normalizers", "pretokenizers"):
        if several in step:
            if any(one["type"] == "WhitespaceSplit" for one in step[several]):
                return step  # every word gets the blank back that was taken from before it
            kept = [_never_prepending(one) for one in step[several]]
            return {**step, several: [one for one in kept if one is not None]}
    if step["type"] == "Metaspace":
        step = {**step, "prepend_scheme": "never"}
        return {k: v for k, v in step.items() if k != "add_prefix_space"}
    return {**step, "add_prefix_space": False} if "add_prefix_space" in step else step


def _without_added_tokens(said: dict[str, Any]) -> dict[str, Any]:
    """A tokenizer that knows no added token and in whose vocabulary none can be written out."""
    added, model = said["added_tokens"], said["model"]
    merged = {
        "".join(pair) if isinstance(pair, list) else pair.replace(" ", "")
        for pair in model.get("merges") or ()
    }
    hidden = {
        token["content"]: f"{_NO_TEXT}{token['id']}"
        for token in added
        if token["content"] not in merged
    }
    vocabulary: Any
    if isinstance(model["vocab"], dict):
        vocabulary = {hidden.get(token, token): at for token, at in model["vocab"].items()}
    else:
        vocabulary = [[hidden.get(token, token), score] for token, score in model["vocab"]]
    model = {**model, "vocab": vocabulary}
    if model.get("unk_token") is not None:
        model["unk_token"] = hidden.get(model["unk_token"], model["unk_token"])
    return {**said, "added_tokens": [], "model": model}
