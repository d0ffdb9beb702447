"""Text to token ids, the one place where it happens.

Template text and titles are encoded apart and joined, so labels, trie and decoding agree to the
token, a prompt's label mask is exact, and the prompts of a growing history share their beginning.
A title can hold the text of a control token, never its id (`parts`). Knows a tokenizer, no model.
"""

import re
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, time
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from llmrec.data.catalog import LARGE
from llmrec.data.mapped import MappedArrays
from llmrec.data.texts import Texts, digest_of, positions_of
from llmrec.errors import RecipeError
from llmrec.text.flat import BLOCK, Enclosed, FlatIds
from llmrec.text.letters import LETTERS
from llmrec.text.parts import Ids as Ids
from llmrec.text.parts import Parts
from llmrec.text.templates import PromptTemplate, Span
from llmrec.text.trie import TitleTrie
from llmrec.text.trie_files import shared

A_DAY = date(2024, 7, 26)
_ASKS_TIME = re.compile(r"""strftime_now\(\s*(['"])((?:(?!\1)[^\\])*)\1\s*\)""")
_SENTINEL = "\ue002"


@dataclass(frozen=True)
class Demonstration:
    """What a similar user had chosen (`history`, positions, oldest first) and `chosen` next."""

    history: Ids
    chosen: int


@dataclass(frozen=True)
class Context:
    """What a prompt shows beside the user's own history: others, positions to choose from, and
    positions that many others chose, most of them first."""

    demonstrations: tuple[Demonstration, ...] = ()
    candidates: tuple[int, ...] = ()
    votes: tuple[int, ...] = ()


NOTHING_ELSE = Context()
_FILES = MappedArrays("title ids", {"ids": np.int32, "offsets": np.int64})


@dataclass(frozen=True)
class EncodedPrompt:
    """A prompt of P tokens that shows H titles of the user's own history.

    `ids` (P,); title i of `history` (H,) takes ids `title_starts[i]` to `title_ends[i]` - 1.
    `dropped`: how many older titles of it were left out. `demonstrations`, `votes`: those that are
    shown, as they are shown.
    """

    ids: Ids
    history: Ids
    title_starts: npt.NDArray[np.int64]
    title_ends: npt.NDArray[np.int64]
    dropped: int
    demonstrations: tuple[Demonstration, ...] = ()
    votes: tuple[int, ...] = ()


class PromptEncoder:
    """Encodes the prompts and completions of one catalog under one template and tokenizer.

    `titles`: the catalog's, by position. `form`: "plain" text, or "chat" for the template's prompt
    as the user's message in the tokenizer's chat template. A prompt shows at most `max_history`
    titles, and with the longest completion behind it takes at most `max_tokens`. To keep to it the
    oldest title of the history that shows most is left out, again and again, the user's own among
    equals last, or the last vote where there are more of those; then whole demonstrations, the last
    first. `tries`: a folder where the trie of a large catalog is kept, and beside it its titles'
    ids, for other processes and the next time. `today`: the day that a chat template which names
    one is given. `rows`: how many rows the model's embedding has. `letters`: candidates are shown
    with letters, which are the answers.
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
        tries: Path | None = None,
        today: date = A_DAY,
        rows: int | None = None,
        letters: bool = False,
    ) -> None:
        if tokenizer.eos_token_id is None:
            raise RecipeError("the tokenizer has no end-of-sequence token; titles cannot be closed")
        template.check()
        self.template, self.tokenizer, self.form = template, tokenizer, form
        self.titles, self.max_history, self.max_tokens = titles, max_history, max_tokens
        self.tries, self.letters = tries, letters
        self._parts = Parts(tokenizer, rows)
        self.title_ids = self._title_ids()
        self._around = _chat_around(tokenizer, today) if form == "chat" else ("", "")
        self._pieces: dict[Hashable, list[Ids | int]] = {}
        empty = np.flatnonzero(np.diff(self.title_ids.offsets) == 0)
        if len(empty):
            raise RecipeError(
                f"title {titles[empty[0]]!r} (position {empty[0]}) has no tokens under this "
                "tokenizer; give the item another title"
            )

    def _title_ids(self) -> FlatIds:
        """The titles' token ids, where there are many from a folder that processes share."""
        if self._folder is None:
            return self._encoded_titles()
        folder = self._folder.with_name("title-ids")
        return FlatIds(
            **_FILES.shared(folder, self._title_key, lambda: vars(self._encoded_titles()))
        )

    def _encoded_titles(self) -> FlatIds:
        return FlatIds.of(
            ids
            for begin in range(0, len(self.titles), BLOCK)
            for ids in self._parts.titles(list(self.titles[begin : begin + BLOCK]))
        )

    @property
    def _folder(self) -> Path | None:
        """Where the trie is kept, and what of the titles is beside it; None: here alone."""
        shares = len(self.titles) >= LARGE and self._parts.digest is not None
        return self.tries if shares else None

    @cached_property
    def _title_key(self) -> str:
        """What the titles' token ids are made from."""
        texts = self.titles if isinstance(self.titles, Texts) else Texts.of_strings(self.titles)
        return f"{self._parts.digest} {texts.digest}"

    @cached_property
    def completions(self) -> Enclosed:
        """(N,) token ids of the answer for each item, the end token last."""
        before, _, after = self._around_target
        return self.title_ids.between(before, after)

    @cached_property
    def position_of(self) -> Mapping[str, int]:
        """The position of each title, to the letter."""
        return positions_of(self.titles)

    def title_tokens(self, text: str) -> Ids:
        """Token ids of any text as if it were a title; as data, never control tokens."""
        return self._parts.titles([text])[0]

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
        begin = [] if self._parts.bos is None else [self._parts.bos]
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
        if self._folder is None:
            return self._built_trie()
        around = digest_of(self.completions.before, self.completions.after)
        return shared(self._built_trie, self._folder, f"{self._title_key} {around}")

    def _built_trie(self) -> TitleTrie:
        flat = self.completions.flat()
        return TitleTrie.from_flat(flat.ids, flat.offsets)

    def prompt(
        self, history: Sequence[int] | Ids, context: Context = NOTHING_ELSE
    ) -> EncodedPrompt:
        """Encode the prompt of a history of positions, oldest first; it may be empty.

        Raises RecipeError when not even the newest title fits into `max_tokens`, and ValueError
        for a position outside the catalog.
        """
        own, others = np.asarray(history, np.int32)[-self.max_history :], context.demonstrations
        room, votes = self.room, context.votes
        while True:
            parts, starts, ends = self._laid_out(own, others, context.candidates, votes)
            size = sum(map(len, parts))
            if size <= room:
                break
            if len(votes) > max([len(own), *(len(other.history) for other in others)]):
                votes = votes[:-1]
                continue
            if len(own) <= 1 and not others:
                raise RecipeError(
                    f"prompt.max_tokens = {self.max_tokens} leaves {room} tokens for a prompt, "
                    f"and {len(own)} titles{' and the candidates' * bool(context.candidates)} "
                    f"already take {size}; raise it or shorten the template"
                )
            own, others = _shorter(own, others)
        return EncodedPrompt(
            np.concatenate(parts).astype(np.int32),
            own,
            starts,
            ends,
            len(history) - len(own),
            others,
            votes,
        )

    def require_shared_prefixes(self) -> None:
        """Raise RecipeError unless a shorter history's prompt begins a longer one's.

        Rows with several targets need this: the text up to a title, and the closing words after
        the last one, must not depend on how many titles follow or stand before.
        """
        whole = self._prompt_pieces(self.max_history)
        closing = whole[_last_title(whole) + 1 :]
        for count in range(1, self.max_history):
            short = self._prompt_pieces(count)
            cut = _last_title(short) + 1
            if not (_same(short[:cut], whole[:cut]) and _same(short[cut:], closing)):
                raise RecipeError(
                    f"{self.template.name}: the prompt of {count} titles is not the beginning of "
                    f"that of {self.max_history}, so rows cannot share it; use rows.shape: single "
                    "or keep the number of titles out of the template"
                )

    @cached_property
    def room(self) -> int:
        """How many tokens a prompt may have."""
        return self.max_tokens - self.completions.longest

    @cached_property
    def _around_target(self) -> tuple[Ids, Ids, Ids]:
        ids = self._parts.inside(self._words_around_target)
        end = np.array([self.tokenizer.eos_token_id], np.int32)
        return ids[0], end[:0], np.concatenate([ids[1], end])

    @cached_property
    def _words_around_target(self) -> tuple[str, str]:
        spans = self.template.completion("")
        at = next(i for i, span in enumerate(spans) if span.title is not None)
        return "".join(s.text for s in spans[:at]), "".join(s.text for s in spans[at + 1 :])

    def _laid_out(
        self,
        own: Ids,
        others: Sequence[Demonstration],
        candidates: Sequence[int],
        votes: Sequence[int] = (),
    ) -> tuple[list[Ids], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        shown = [*own, *(p for d in others for p in (*d.history, d.chosen)), *candidates, *votes]
        if shown and not 0 <= min(shown) <= max(shown) < len(self.titles):
            raise ValueError(
                f"a prompt shows positions {min(shown)} to {max(shown)}; the catalog "
                f"has 0 to {len(self.titles) - 1}"
            )
        parts: list[Ids] = []
        starts = np.zeros(len(own), np.int64)
        ends = np.zeros(len(own), np.int64)
        size = 0
        lengths = tuple(len(d.history) for d in others)
        for piece in self._prompt_pieces(len(own), lengths, len(candidates), len(votes)):
            ids = self.title_ids[shown[piece]] if isinstance(piece, int) else piece
            if isinstance(piece, int) and piece < len(own):
                starts[piece], ends[piece] = size, size + len(ids)
            parts.append(ids)
            size += len(ids)
        return parts, starts, ends

    def _prompt_pieces(
        self, count: int, others: tuple[int, ...] = (), candidates: int = 0, votes: int = 0
    ) -> list[Ids | int]:
        """The prompt of `count` titles and what it shows beside; `others`: the lengths of the
        demonstrations' histories."""

        def render() -> tuple[Span, ...]:
            shown = [([""] * other, "") for other in others]
            letters = LETTERS[:candidates] if self.letters else ""
            none = [""]
            return self.template.prompt(
                none * count, shown, none * candidates, none * votes, letters
            )

        return self.pieces(("prompt", count, others, candidates, votes), render)

    def pieces(self, key: Hashable, render: Callable[[], Sequence[Span]]) -> list[Ids | int]:
        """Token ids of a block's words and numbers of its titles, as the template numbers them.

        `render` gives the block, `key` what it depends on: a block is encoded once.
        """
        if key not in self._pieces:
            self._pieces[key] = self._encoded(render())
        return self._pieces[key]

    def _encoded(self, spans: Sequence[Span]) -> list[Ids | int]:
        before, after = self._around
        merged: list[str | int] = [""]
        for span in [Span(before), *spans, Span(after)]:
            if span.title is not None:
                merged += [span.title, ""]
            else:
                merged[-1] = f"{merged[-1]}{span.text}"
        first, *later = [m for m in merged if isinstance(m, str)]
        words = iter([self._parts.beginning(first), *self._parts.inside(later)])
        return [m if isinstance(m, int) else next(words) for m in merged]


def _shorter(own: Ids, others: tuple[Demonstration, ...]) -> tuple[Ids, tuple[Demonstration, ...]]:
    """Without the oldest title of the longest history, or without the last demonstration."""
    lengths = [len(own), *(len(other.history) for other in others)]
    longest = len(lengths) - 1 - int(np.argmax(lengths[::-1]))
    if lengths[longest] <= 1:
        return own, others[:-1]
    if longest == 0:
        return own[1:], others
    cut = others[longest - 1]
    kept = Demonstration(cut.history[1:], cut.chosen)
    return own, (*others[: longest - 1], kept, *others[longest:])


def _chat_around(tokenizer: Any, today: date) -> tuple[str, str]:
    """What the tokenizer's chat template puts before and after a single user message.

    A template that asks for the time is told midnight of `today`, whatever the clock says.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise RecipeError(
            "prompt.form is 'chat' but the tokenizer has no chat template; use 'plain'"
        )
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": _SENTINEL}],
        chat_template=_at_midnight(tokenizer.get_chat_template(), today),
        tokenize=False,
        add_generation_prompt=True,
    )
    before, found, after = text.partition(_SENTINEL)
    if not found or _SENTINEL in after:
        raise RecipeError("the tokenizer's chat template does not show the user's message once")
    return before, after


def _at_midnight(chat_template: str, today: date) -> str:
    """The template with its questions for the time answered.

    Raises RecipeError for one whose form is not written where it is asked.
    """
    now = datetime.combine(today, time())
    answered = _ASKS_TIME.sub(lambda asked: repr(now.strftime(asked[2])), chat_template)
    if "strftime_now(" in answered.replace(" ", ""):
        raise RecipeError(
            "the tokenizer's chat template asks for the time in a form that it makes up, so its "
            "prompts would change with the clock; use prompt.form plain"
        )
    return answered


def _last_title(pieces: Sequence[Ids | int]) -> int:
    return max(i for i, piece in enumerate(pieces) if isinstance(piece, int))


def _same(left: Sequence[Ids | int], right: Sequence[Ids | int]) -> bool:
    return len(left) == len(right) and all(
        a == b if isinstance(a, int) or isinstance(b, int) else np.array_equal(a, b)
        for a, b in zip(left, right, strict=True)
    )
