"""Prompt templates: a file with blocks `prompt` and `completion`, rendered to spans.

A template that shows similar users has a third block, `selection`, the question how alike two
users are.

A template never sees a title. It sees a stand-in for each, the text is rendered once, and the
stand-ins are then replaced by spans marked as untrusted. So no title can become template code, and
the encoder knows which characters came from the data. What a template may say is in
`template_grammar`. Knows neither tokens nor paths.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

from llmrec.errors import RecipeError
from llmrec.shipped_files import prompt_text
from llmrec.text.template_grammar import MAY, beyond

MAX_CHARACTERS = 200_000
_OPEN, _CLOSE = "\ue000", "\ue001"  # private-use characters, which cleaned titles cannot hold
_STAND_IN = re.compile(f"{_OPEN}([0-9]+){_CLOSE}")
_ENVIRONMENT = ImmutableSandboxedEnvironment(
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
    autoescape=False,  # the output is a prompt, and titles are never rendered
)


@dataclass(frozen=True)
class Span:
    """A piece of rendered text; `title` numbers the title it is, None for template text."""

    text: str
    title: int | None = None


@dataclass(frozen=True)
class PromptTemplate:
    """A template's source and its name in messages.

    Block `prompt` sees `history`, the titles so far, oldest first; `demonstrations`, each with the
    `history` of a similar user and the title `chosen` next; `votes`, titles that many similar users
    chose; `candidates`, the titles to choose from; and `letters`, those of the candidates where the
    answer is one. All but the first may be empty. Block `completion` sees `target`; block
    `selection` sees `history` and `other`, the history of a user to be compared; `selections` sees
    `history` and `others`, several of those. All are rendered by a sandbox that refuses undefined
    names.
    """

    source: str
    name: str = "template"

    @staticmethod
    def from_file(path: Path | str) -> "PromptTemplate":
        """Read a template file. Raises RecipeError when it cannot be read or is no template."""
        try:
            template = PromptTemplate(Path(path).read_text("utf-8"), str(path))
        except (OSError, UnicodeDecodeError) as error:
            raise RecipeError(f"prompt template {path}: cannot be read ({error})") from None
        template.check()
        return template

    @staticmethod
    def from_name(name: str) -> "PromptTemplate":
        """The shipped template <task>/<domain>, as `llmrec prompts ls` lists them. Raises
        RecipeError where there is none."""
        return PromptTemplate(prompt_text(name), name)

    def prompt(
        self,
        history: Sequence[str],
        demonstrations: Sequence[tuple[Sequence[str], str]] = (),
        candidates: Sequence[str] = (),
        votes: Sequence[str] = (),
        letters: Sequence[str] = (),
    ) -> tuple[Span, ...]:
        """The text before the answer; `letters` of the candidates, where it is to be one.

        A title span is numbered by its place in: history, each demonstration's history and choice,
        candidates, votes.
        """
        titles = list(history)
        shown = []
        for before, chosen in demonstrations:
            first = len(titles)
            titles += [*before, chosen]
            shown.append(
                {
                    "history": [_stand_in(first + i) for i in range(len(before))],
                    "chosen": _stand_in(len(titles) - 1),
                }
            )
        names = {
            "history": [_stand_in(i) for i in range(len(history))],
            "demonstrations": shown,
            "candidates": [_stand_in(len(titles) + i) for i in range(len(candidates))],
            "votes": [_stand_in(len(titles) + len(candidates) + i) for i in range(len(votes))],
            "letters": list(letters),
        }
        return self._render("prompt", names, [*titles, *candidates, *votes])

    def completion(self, title: str) -> tuple[Span, ...]:
        """The answer to learn: its title span has number 0."""
        return self._render("completion", {"target": _stand_in(0)}, [title])

    def selection(self, history: Sequence[str], other: Sequence[str]) -> tuple[Span, ...]:
        """The question how alike two users are; titles are numbered through both histories."""
        names = {
            "history": [_stand_in(i) for i in range(len(history))],
            "other": [_stand_in(len(history) + i) for i in range(len(other))],
        }
        return self._render("selection", names, [*history, *other])

    def selections(
        self, history: Sequence[str], others: Sequence[Sequence[str]]
    ) -> tuple[Span, ...]:
        """The same question about several users at once; titles are numbered through all of it."""
        titles = list(history)
        shown = []
        for other in others:
            shown.append([_stand_in(len(titles) + i) for i in range(len(other))])
            titles += other
        names = {"history": [_stand_in(i) for i in range(len(history))], "others": shown}
        return self._render("selections", names, titles)

    def check(self) -> None:
        """Raise RecipeError unless each history title shows once, in order, and the target once."""
        self._require(
            _numbers(self.prompt(["A", "B", "C"])),
            [0, 1, 2],
            "'prompt'",
            "a history of three (loop over `history`)",
        )
        self._require(_numbers(self.completion("A")), [0], "'completion'", "the `target`")

    def check_context(
        self,
        demonstrations: bool,
        candidates: bool,
        selection: bool,
        votes: bool = False,
        selections: bool = False,
        letters: bool = False,
    ) -> None:
        """Raise RecipeError unless those that are wanted show, each title once."""
        if letters:
            shown = self.prompt(["A"], (), ["B", "C"], (), "%&")
            before = [a.text[-9:] for a, b in pairwise(shown) if b.title in (1, 2)]
            if [("%" in text, "&" in text) for text in before] != [(True, False), (False, True)]:
                raise RecipeError(
                    f"{self.name}: block 'prompt' does not show each of `letters` right before its "
                    "candidate; write ({{ letters[loop.index0] }}) in the loop over `candidates`"
                )
        if demonstrations:
            found = _numbers(self.prompt(["A"], [(["B", "C"], "D"), (["E"], "F")]))
            self._require(
                sorted(found),
                list(range(6)),
                "'prompt'",
                "two demonstrations beside a history of one (loop over "
                "`demonstrations`, in each over `history`, then `chosen`)",
            )
        if candidates:
            found = _numbers(self.prompt(["A"], (), ["B", "C"], (), "XY" if letters else ""))
            self._require(
                sorted(found),
                [0, 1, 2],
                "'prompt'",
                "two candidates, a history of one (loop over `candidates`)",
            )
        if votes:
            found = _numbers(self.prompt(["A"], (), (), ["B", "C"]))
            self._require(
                sorted(found),
                [0, 1, 2],
                "'prompt'",
                "two votes, a history of one (loop over `votes`)",
            )
        if selections:
            self._require(
                _numbers(self.selections(["A", "B"], [["C"], ["D", "E"]])),
                [0, 1, 2, 3, 4],
                "'selections'",
                "a history of two and others of one and two (loop over `history`, then over "
                "`others` and each one's titles)",
            )
        if selection:
            self._require(
                _numbers(self.selection(["A", "B"], ["C", "D"])),
                [0, 1, 2, 3],
                "'selection'",
                "two histories of two (loop over `history`, then `other`)",
            )

    def _require(self, found: list[int], wanted: list[int], block: str, of: str) -> None:
        if found != wanted:
            raise RecipeError(
                f"{self.name}: block {block} shows the titles {found} of {of}; it must show each "
                f"once, in order, which is {wanted}"
            )

    def _render(
        self, block: str, names: Mapping[str, object], titles: Sequence[str]
    ) -> tuple[Span, ...]:
        template = self._compiled
        if block not in template.blocks:
            raise RecipeError(
                f"{self.name}: no block '{block}'; a template has the blocks 'prompt' and "
                "'completion', and where the model chooses similar users 'selection', or "
                "'selections' for all of them at once"
            )
        try:
            text = _capped(template.blocks[block](template.new_context(dict(names))), self.name)
        except (jinja2.TemplateError, TypeError, ValueError, ArithmeticError, MemoryError) as error:
            raise RecipeError(f"{self.name}: block '{block}': {error}") from None
        return tuple(_spans(text, titles))

    @cached_property
    def _compiled(self) -> jinja2.Template:
        if _OPEN in self.source or _CLOSE in self.source:
            raise RecipeError(f"{self.name}: holds the private-use characters U+E000 or U+E001")
        if len(self.source) > MAX_CHARACTERS:
            raise RecipeError(f"{self.name}: is longer than {MAX_CHARACTERS} characters")
        try:
            found = beyond(_ENVIRONMENT.parse(self.source))
            if found is not None:
                line, what = found
                raise RecipeError(f"{self.name}:{line}: a template may not hold {what}; {MAY}")
            return _ENVIRONMENT.from_string(self.source)
        except jinja2.TemplateSyntaxError as error:
            raise RecipeError(f"{self.name}:{error.lineno}: {error.message}") from None
        except RecursionError:
            raise RecipeError(f"{self.name}: is nested too deeply") from None


def _numbers(spans: Sequence[Span]) -> list[int]:
    return [span.title for span in spans if span.title is not None]


def _stand_in(index: int) -> str:
    return f"{_OPEN}{index}{_CLOSE}"


def _capped(pieces: Iterator[str], name: str) -> str:
    kept, size = [], 0
    for piece in pieces:
        kept.append(piece)
        size += len(piece)
        if size > MAX_CHARACTERS:
            raise RecipeError(f"{name}: renders to more than {MAX_CHARACTERS} characters")
    return "".join(kept)


def _spans(text: str, titles: Sequence[str]) -> Iterator[Span]:
    parts = _STAND_IN.split(text)  # template text, number, template text, number, ...
    for index, part in enumerate(parts):
        if index % 2:
            yield Span(titles[int(part)], int(part))
        elif part:
            yield Span(part)
