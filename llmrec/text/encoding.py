"""Text to token ids, the one place where it happens.

Template text and titles are encoded apart and joined, so labels, trie and decoding agree to the
token, a prompt's label mask is exact, and the prompts of a growing history share their beginning.
A title is encoded with special tokens split: it can hold the text of a control token, never its id.
Knows a tokenizer, no model.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from llmrec.errors import RecipeError
from llmrec.text.templates import PromptTemplate, Span
from llmrec.text.trie import TitleTrie

Ids = npt.NDArray[np.int32]
_SENTINEL = "\ue002"


@dataclass(frozen=True)
class EncodedPrompt:
    """A prompt of P tokens that shows H titles.

    `ids` (P,); title i of `history` (H,) takes ids `title_starts[i]` to `title_ends[i]` - 1.
    `dropped`: how many older titles the token budget left out.
    """

    ids: Ids
    history: Ids
    title_starts: npt.NDArray[np.int64]
    title_ends: npt.NDArray[np.int64]
    dropped: int


class PromptEncoder:
    """Encodes the prompts and completions of one catalog under one template and tokenizer.

    `titles`: the catalog's, by position. `form`: "plain" text, or "chat" for the template's prompt
    as the user's message in the tokenizer's chat template. A prompt shows at most `max_history`
    titles, and with the longest completion behind it takes at most `max_tokens`: the oldest titles
    are dropped first, whole.
    """

    def __init__(
        self,
        template: PromptTemplate,
        tokenizer: Any,
        titles: Sequence[str],
        *,
        form: str = "plain",
        max_history: int = 10,
        max_tokens: int = 700,
    ) -> None:
        if tokenizer.eos_token_id is None:
            raise RecipeError("the tokenizer has no end-of-sequence token; titles cannot be closed")
        template.check()
        self.template, self.tokenizer, self.form = template, tokenizer, form
        self.titles, self.max_history, self.max_tokens = titles, max_history, max_tokens
        self.title_ids = self._encode(list(titles), untrusted=True)
        self._around = _chat_around(tokenizer) if form == "chat" else ("", "")
        self._pieces: dict[int, list[Ids | int]] = {}
        for position, ids in enumerate(self.title_ids):
            if len(ids) == 0:
                raise RecipeError(
                    f"title {titles[position]!r} (position {position}) has no tokens under this "
                    "tokenizer; give the item another title"
                )

    @cached_property
    def completions(self) -> list[Ids]:
        """(N,) token ids of the answer for each item, the end token last."""
        before, _, after = self._around_target
        return [np.concatenate([before, ids, after]).astype(np.int32) for ids in self.title_ids]

    @cached_property
    def position_of(self) -> dict[str, int]:
        """The position of each title, to the letter."""
        return {title: position for position, title in enumerate(self.titles)}

    def title_tokens(self, text: str) -> Ids:
        """Token ids of any text as if it were a title; as data, never control tokens."""
        return self._encode([text], untrusted=True)[0]

    def completion_of(self, text: str) -> Ids:
        """Token ids of the answer `text`, the end token last."""
        before, _, after = self._around_target
        return np.concatenate([before, self.title_tokens(text), after]).astype(np.int32)

    def written(self, tokens: Ids) -> str:
        """The title in what a model wrote before its end token; the template's words taken off."""
        text: str = self.tokenizer.decode(tokens.tolist(), skip_special_tokens=True)
        before, after = self._words_around_target
        return text.removeprefix(before).removesuffix(after).strip()

    def standing_alone(self, text: str) -> Ids:
        """Token ids of a text by itself: after the begin token, where the tokenizer has one.

        For a text without tokens the end token stands, so that there is something to read.
        """
        begin = [] if self._bos is None else [self._bos]
        ids = self.title_tokens(text)
        ids = ids if len(ids) else np.array([self.tokenizer.eos_token_id], np.int32)
        return np.concatenate([begin, ids]).astype(np.int32)

    @property
    def title_offset(self) -> int:
        """How many tokens of a completion stand before the title itself."""
        return len(self._around_target[0])

    @cached_property
    def trie(self) -> TitleTrie:
        """The TitleTrie of `completions`."""
        return TitleTrie.from_sequences(self.completions)

    def prompt(self, history: Sequence[int] | Ids) -> EncodedPrompt:
        """Encode the prompt of a history of positions, oldest first; it may be empty.

        Raises RecipeError when not even the newest title fits into `max_tokens`.
        """
        shown = np.asarray(history, np.int32)[-self.max_history :]
        room = self.max_tokens - self._longest_completion
        while True:
            parts, starts, ends = self._laid_out(shown)
            size = sum(map(len, parts))
            if size <= room:
                break
            if len(shown) <= 1:
                raise RecipeError(
                    f"prompt.max_tokens = {self.max_tokens} leaves {room} tokens for a prompt, "
                    f"and {len(shown)} titles already take {size}; raise it or shorten the template"
                )
            shown = shown[1:]
        return EncodedPrompt(np.concatenate(parts).astype(np.int32), shown, starts, ends,
                             len(history) - len(shown))  # fmt: skip

    def require_shared_prefixes(self) -> None:
        """Raise RecipeError unless a shorter history's prompt begins a longer one's.

        Rows with several targets need this: the text up to a title, and the closing words after
        the last one, must not depend on how many titles follow or stand before.
        """
        whole = self._pieces_of(self.max_history)
        closing = whole[_last_title(whole) + 1 :]
        for count in range(1, self.max_history):
            short = self._pieces_of(count)
            cut = _last_title(short) + 1
            if not (_same(short[:cut], whole[:cut]) and _same(short[cut:], closing)):
                raise RecipeError(
                    f"{self.template.name}: the prompt of {count} titles is not the beginning of "
                    f"that of {self.max_history}, so rows cannot share it; use rows.shape: single "
                    "or keep the number of titles out of the template"
                )

    @cached_property
    def _longest_completion(self) -> int:
        return max(map(len, self.completions))

    @cached_property
    def _around_target(self) -> tuple[Ids, Ids, Ids]:
        ids = self._encode(list(self._words_around_target), untrusted=False)
        end = np.array([self.tokenizer.eos_token_id], np.int32)
        return ids[0], end[:0], np.concatenate([ids[1], end])

    @cached_property
    def _words_around_target(self) -> tuple[str, str]:
        spans = self.template.completion("")
        at = next(i for i, span in enumerate(spans) if span.title is not None)
        return "".join(s.text for s in spans[:at]), "".join(s.text for s in spans[at + 1 :])

    def _laid_out(
        self, shown: Ids
    ) -> tuple[list[Ids], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        parts: list[Ids] = []
        starts = np.zeros(len(shown), np.int64)
        ends = np.zeros(len(shown), np.int64)
        size = 0
        for piece in self._pieces_of(len(shown)):
            ids = self.title_ids[shown[piece]] if isinstance(piece, int) else piece
            if isinstance(piece, int):
                starts[piece], ends[piece] = size, size + len(ids)
            parts.append(ids)
            size += len(ids)
        return parts, starts, ends

    def _pieces_of(self, count: int) -> list[Ids | int]:
        """The prompt of a history of `count` titles: token ids of its words, numbers of titles."""
        if count not in self._pieces:
            before, after = self._around
            spans = [Span(before), *self.template.prompt([""] * count), Span(after)]
            merged: list[str | int] = [""]
            for span in spans:
                if span.title is not None:
                    merged += [span.title, ""]
                else:
                    merged[-1] = f"{merged[-1]}{span.text}"
            words = iter(self._encode([m for m in merged if isinstance(m, str)], untrusted=False))
            pieces: list[Ids | int] = [m if isinstance(m, int) else next(words) for m in merged]
            first = pieces[0]
            if not isinstance(first, int) and self._bos is not None and self._bos not in first[:1]:
                pieces[0] = np.concatenate([[self._bos], first]).astype(np.int32)
            self._pieces[count] = pieces
        return self._pieces[count]

    @cached_property
    def _bos(self) -> int | None:
        """The begin token's id, if this tokenizer puts one before a text."""
        bos = self.tokenizer.bos_token_id
        begins = self.tokenizer("a")["input_ids"][:1]
        return int(bos) if bos is not None and begins == [bos] else None

    def _encode(self, texts: list[str], *, untrusted: bool) -> list[Ids]:
        if not texts:
            return []
        encoded = self.tokenizer(texts, add_special_tokens=False, split_special_tokens=untrusted)
        return [np.array(ids, np.int32) for ids in encoded["input_ids"]]


def _chat_around(tokenizer: Any) -> tuple[str, str]:
    """What the tokenizer's chat template puts before and after a single user message."""
    if not getattr(tokenizer, "chat_template", None):
        raise RecipeError(
            "prompt.form is 'chat' but the tokenizer has no chat template; use 'plain'"
        )
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": _SENTINEL}], tokenize=False, add_generation_prompt=True
    )
    before, found, after = text.partition(_SENTINEL)
    if not found or _SENTINEL in after:
        raise RecipeError("the tokenizer's chat template does not show the user's message once")
    return before, after


def _last_title(pieces: Sequence[Ids | int]) -> int:
    return max(i for i, piece in enumerate(pieces) if isinstance(piece, int))


def _same(left: Sequence[Ids | int], right: Sequence[Ids | int]) -> bool:
    return len(left) == len(right) and all(
        a == b if isinstance(a, int) or isinstance(b, int) else np.array_equal(a, b)
        for a, b in zip(left, right, strict=True)
    )
