"""A file of settings as it is read: where each key was given, and every problem found so far.

Knows YAML and lines, no recipe.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llmrec.errors import RecipeError
from llmrec.recipe import plain_yaml

MAX_BYTES = 4 * plain_yaml.MAX_CHARACTERS
LAST = 1 << 30  # problems without a line of this file are told after those with one


@dataclass(frozen=True)
class Setting:
    """A value given from outside the file: `place` says where, `folder` is what a path in it is
    relative to."""

    path: tuple[str, ...]
    value: Any
    place: str
    folder: Path = Path()


@dataclass
class Reading:
    """What has been read so far: `tree` of the file, changed by `settings` that were given."""

    file: str
    tree: dict[str, Any]
    lines: dict[plain_yaml.KeyPath, int]
    given: dict[plain_yaml.KeyPath, Setting] = field(default_factory=dict)
    problems: list[tuple[int, str]] = field(default_factory=list)

    @staticmethod
    def of(path: Path, empty: str) -> tuple["Reading", bool]:
        """A file's reading, and whether its text is YAML at all; `empty` says what it should hold.

        Raises RecipeError where the file is too large or no text.
        """
        document = plain_yaml.read(text_of(path))
        reading = Reading(str(path), {}, document.lines)
        for problem in document.problems:
            reading.problems.append((problem.line, f"{path}:{problem.line}: {problem.text}"))
        if document.value is not None and not isinstance(document.value, dict):
            reading.report((), empty)
        elif document.value is not None:
            reading.tree = document.value
        return reading, document.value is not None

    def give(self, setting: Setting) -> None:
        """Write a setting into the tree; the last one of a key stands."""
        node = self.tree
        for part in setting.path[:-1]:
            child = node.get(part)
            if not isinstance(child, dict):
                child = node[part] = {}
            node = child
        node[setting.path[-1]] = setting.value
        self.given[setting.path] = setting

    def place_of(self, path: plain_yaml.KeyPath) -> tuple[int, str]:
        """Where `path`, or what holds it, was given: its rank among problems, and in words."""
        for length in range(len(path), -1, -1):
            if path[:length] in self.given:
                return LAST, self.given[path[:length]].place
            if path[:length] in self.lines:
                line = self.lines[path[:length]]
                return line, f"{self.file}:{line}"
        return 1, f"{self.file}:1"

    def report(self, path: plain_yaml.KeyPath, message: str) -> None:
        """Add a problem at the place where `path`, or what holds it, was given."""
        rank, place = self.place_of(path)
        self.problems.append((rank, f"{place}: {message}"))

    def raise_problems(self) -> None:
        """Raise RecipeError with every problem, in the order of the lines."""
        if self.problems:
            texts = [text for _, text in sorted(self.problems, key=lambda problem: problem[0])]
            raise several(self.file, texts)


def several(file: str, problems: list[str]) -> RecipeError:
    """One error that lists them all."""
    count = "1 error" if len(problems) == 1 else f"{len(problems)} errors"
    text = f"{file}: {count}\n" + "\n".join(f"  {problem}" for problem in problems)
    return RecipeError(text, problems)


def given_on_the_command_line(override: str) -> tuple[Setting | None, list[str]]:
    """`section.key=value` as a setting, and what is wrong with it."""
    place = f"command line, {override!r}"
    dotted, equals, text = override.partition("=")
    parts = tuple(dotted.split("."))
    if not equals or not all(parts):
        return None, [f"{place}: overrides are written section.key=value, options start with --"]
    document = plain_yaml.read(text)
    value = None if text.strip() == "" else document.value
    return Setting(parts, value, place), [f"{place}: {p.text}" for p in document.problems]


def text_of(path: Path) -> str:
    """The text of a file. Raises RecipeError where it is too large, unreadable or not UTF-8."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise RecipeError(f"{path}: larger than {MAX_BYTES} bytes; this is no recipe")
        return path.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise RecipeError(f"{path}:{line}: not UTF-8 text; save the file as UTF-8") from error
    except OSError as error:
        raise RecipeError(f"{path}: cannot be read ({error.strerror})") from error
