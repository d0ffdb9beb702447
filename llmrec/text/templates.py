"""Prompt templates: a file with two blocks, `prompt` and `completion`, rendered to spans.

A template never sees a title. It sees a stand-in for each, the text is rendered once, and the
stand-ins are then replaced by spans marked as untrusted. So no title can become template code, and
the encoder knows which characters came from the data. Knows neither tokens nor paths.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

from llmrec.errors import RecipeError

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

    Block `prompt` sees `history`, the titles so far, oldest first; block `completion` sees
    `target`. Both are rendered by a sandbox that refuses undefined names.
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

    def prompt(self, history: Sequence[str]) -> tuple[Span, ...]:
        """The text before the answer; span.title is an index of `history`."""
        return self._render("prompt", {"history": [_stand_in(i) for i in range(len(history))]},
                            history)  # fmt: skip

    def completion(self, title: str) -> tuple[Span, ...]:
        """The answer to learn: its title span has number 0."""
        return self._render("completion", {"target": _stand_in(0)}, [title])

    def check(self) -> None:
        """Raise RecipeError unless each history title shows once, in order, and the target once."""
        shown = [span.title for span in self.prompt(["A", "B", "C"]) if span.title is not None]
        if shown != [0, 1, 2]:
            raise RecipeError(
                f"{self.name}: block 'prompt' shows the titles {shown} of a history of three; "
                "it must show each once, in order (loop over `history`)"
            )
        if [s.title for s in self.completion("A") if s.title is not None] != [0]:
            raise RecipeError(f"{self.name}: block 'completion' must show `{{{{ target }}}}` once")

    def _render(
        self, block: str, names: Mapping[str, object], titles: Sequence[str]
    ) -> tuple[Span, ...]:
        template = self._compiled
        if block not in template.blocks:
            raise RecipeError(
                f"{self.name}: no block '{block}'; a template has the blocks 'prompt' and "
                "'completion'"
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
        try:
            return _ENVIRONMENT.from_string(self.source)
        except jinja2.TemplateSyntaxError as error:
            raise RecipeError(f"{self.name}:{error.lineno}: {error.message}") from None


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
