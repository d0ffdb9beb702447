"""A made thing of a run: what it depends on, and whether what stands is still that.

An Artifact declares the recipe paths and the contents that it reads. Beside what was made stands a
manifest with the hashes of its files and all that it was made from, so a later command can skip it,
make it again or refuse, naming what differs. Knows no model and no stage.
"""

import json
import logging
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from llmrec.data import sealed
from llmrec.data.files import unique
from llmrec.errors import LlmrecError
from llmrec.recipe import Recipe
from llmrec.recipe.keys import default_at
from llmrec.runs.folder import leaves
from llmrec.runs.identity import combined

log = logging.getLogger("llmrec")
SETTINGS, VERSION = "settings", "result version"
SHOWN = 60  # characters of a value, at most
_ABSENT = object()
Difference = dict[str, tuple[Any, Any]]


@dataclass(frozen=True)
class Artifact:
    """What is, or is to be, made at `place`: a folder or a file.

    `reads`: recipe paths, of a key or a section; `without`: those below them that make no
    difference. `contents`: what else it is made from, by a word for it. `verb`: what makes it.
    `version` is raised when the code gives something else for the same key, so a new recipe key's
    default must do what was done before; what was made then still stands. Where `costly`, one of
    another key is refused, else it is made again. `grows`: numbers that may be larger than when it
    was made, as it can be continued; `beside`: where states that it is continued from are.
    With `to_use` what it was made from besides is not looked at.
    """

    place: Path
    recipe: Recipe
    reads: Sequence[str]
    without: Sequence[str] = ()
    contents: Mapping[str, Any] = field(default_factory=dict)
    verb: str = "train"
    version: int = 1
    costly: bool = False
    grows: Sequence[str] = ()
    beside: Sequence[Path] = ()
    to_use: bool = False

    @cached_property
    def key(self) -> dict[str, Any]:
        """All that it depends on, by dotted recipe path or by word."""
        said = self.recipe.model_dump(mode="json")
        key: dict[str, Any] = {VERSION: self.version}
        for path in self.reads:
            key |= {
                name: value
                for name, value in leaves(path, _at(said, path))
                if not any(_below(name, left_out) for left_out in self.without)
            }
        made: dict[str, Any] = json.loads(json.dumps({**key, **self.contents}))
        return made

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the key; its first digits are enough for a name."""
        return combined([json.dumps(self.key, sort_keys=True)])

    def named_by_key(self) -> "Artifact":
        """The same with the key in its file's name, where those of several keys stand together."""
        named = f"{self.place.stem}-{self.fingerprint[:16]}{self.place.suffix}"
        return replace(self, place=self.place.with_name(named))

    def facts_or_none(self) -> dict[str, Any] | None:
        """The manifest of what stands, verified; None where it is to be made.

        A damaged one is told and is to be made again. Raises LlmrecError for a costly one that was
        made from something else.
        """
        if not self.place.exists():
            return None
        wrong = sealed.problem(self.place)
        if wrong is not None:
            log.warning("%s: %s is damaged (%s); making it again", self.verb, self.place, wrong)
            return None
        facts = sealed.facts(self.place)
        return facts if self.fits(facts, self.place) else None

    def fits(self, facts: Mapping[str, Any], place: Path) -> bool:
        """Whether what has these facts is of this key. Raises LlmrecError as `facts_or_none`."""
        different = self._differences(facts)
        if not different:
            return True
        if self._is_longer(different):
            log.info("%s: going on from %s to %s", self.verb, place, _listed(different))
            return False
        if self.costly:
            raise LlmrecError(self._refusal(different, place))
        log.info("%s: making %s again (%s)", self.verb, place, _listed(different))
        return False

    def resumes(self, facts: Mapping[str, Any], place: Path) -> None:
        """Raise LlmrecError unless making it may go on from a state with these facts."""
        different = self._differences(facts)
        if different and not self._is_longer(different):
            raise LlmrecError(self._refusal(different, place))

    def require(self) -> dict[str, Any]:
        """The manifest of what stands. Raises LlmrecError where it is not there."""
        facts = self.facts_or_none()
        if facts is None:
            raise LlmrecError(
                f"{self.place}: there is none of this recipe; run `llmrec {self.verb}` first"
            )
        return facts

    def content(self) -> str:
        """SHA-256 over the files that stand, verified. Raises LlmrecError where there are none."""
        return content_of(self.require())

    def staged(self) -> Path:
        """Where to make it: a path beside `place` at which nothing stands."""
        staged = self.place.with_name(f".{unique()}.{self.place.name}")
        staged.parent.mkdir(parents=True, exist_ok=True)
        _remove(staged)
        return staged

    @contextmanager
    def staging(self) -> Iterator[Path]:
        """The path of `staged`; what was not put in place from there is removed."""
        staged = self.staged()
        try:
            yield staged
        finally:
            _remove(staged)

    def seal(self, staged: Path, **facts: Any) -> None:
        """Put the folder or file `staged` in place, whole, with its key and `facts`."""
        seal = sealed.seal if staged.is_dir() else sealed.seal_file
        seal(staged, self.place, **{SETTINGS: self.key}, **facts)

    def adopt(self, folder: Path, **facts: Any) -> None:
        """Put a copy of `folder` in place, whole, with its key and `facts`."""
        with self.staging() as staged:
            shutil.copytree(folder, staged, ignore=shutil.ignore_patterns(sealed.MANIFEST))
            self.seal(staged, **facts)

    def write(self, write: Callable[[Path], None], **facts: Any) -> None:
        """Put in place what `write` writes to the path that it is given, with its key."""
        with self.staging() as staged:
            write(staged)
            self.seal(staged, **facts)

    def _differences(self, facts: Mapping[str, Any]) -> Difference:
        made = facts.get(SETTINGS) or {}
        if self.to_use:
            made = {name: value for name, value in made.items() if name in self.key}
        # A key that came into recipes later stands at what was done before there was such a key.
        later = {n for n in self.key.keys() - made.keys() if self.key[n] == _default_at(n)}
        return differences(made, {n: v for n, v in self.key.items() if n not in later})

    def _is_longer(self, different: Difference) -> bool:
        return all(name in self.grows and _grew(old, new) for name, (old, new) in different.items())

    def _refusal(self, different: Difference, place: Path) -> str:
        given = self.recipe.model_dump(mode="json")
        back = [
            f"{name}={json.dumps(old)}"
            for name, (old, _) in different.items()
            if old is not _ABSENT and _at(given, name, _ABSENT) is not _ABSENT
        ]
        as_it_was = f"add {' '.join(back)} to go on with it, or " if back else ""
        remove = " and ".join(str(path) for path in (self.place, *self.beside) if path.exists())
        return (
            f"{place} was made with other settings or data (then -> now):\n"
            + lines_of(different)
            + f"\n{as_it_was}give the recipe another name, or remove {remove} to make it again"
        )


def content_of(facts: Mapping[str, Any]) -> str:
    """SHA-256 over the files of a manifest, apart from a page that describes them."""
    files = sorted(facts["files"].items())
    return combined(f"{name} {sha}" for name, sha in files if not name.endswith(".md"))


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> Difference:
    """What differs between two keys, name -> (old, new); a section that one has not is one name."""
    found: Difference = {}
    for name in sorted({*old, *new}):
        before, after = old.get(name, _ABSENT), new.get(name, _ABSENT)
        if before != after and not any(_below(name, whole) for whole in found):
            found[name] = (before, after)
    return found


def lines_of(different: Difference) -> str:
    """One line for each difference: its name, what it was and what it is."""
    return "\n".join(
        f"  {name.removeprefix('settings.')}: {_shown(old)} -> {_shown(new)}"
        for name, (old, new) in different.items()
    )


def _default_at(name: str) -> Any:
    """A recipe key's default; what equals nothing for a word that is none."""
    try:
        return default_at(name)
    except KeyError:
        return _ABSENT


def _at(tree: Any, path: str, absent: Any = None) -> Any:
    """What stands at a dotted path; `absent` where nothing does."""
    for part in path.split("."):
        if not isinstance(tree, dict) or part not in tree:
            return absent
        tree = tree[part]
    return tree


def _below(name: str, section: str) -> bool:
    return name == section or name.startswith(f"{section}.")


def _grew(old: Any, new: Any) -> bool:
    return isinstance(old, int | float) and isinstance(new, int | float) and 0 < old < new


def _shown(value: Any) -> str:
    if value is _ABSENT:
        return "(not there)"
    text = json.dumps(value, ensure_ascii=False)
    if isinstance(value, str) and len(value) == 64:
        text = value[:12]  # a hash
    return text if len(text) <= SHOWN else text[: SHOWN - 3] + "..."


def _listed(different: Difference) -> str:
    return ", ".join(f"{k}: {_shown(old)} -> {_shown(new)}" for k, (old, new) in different.items())


def _remove(staged: Path) -> None:
    """Remove a folder or a file, if there is one."""
    shutil.rmtree(staged, ignore_errors=True)
    if not staged.is_dir():
        staged.unlink(missing_ok=True)
