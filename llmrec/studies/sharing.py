"""What the cells of a study have in common is made in the first of them and copied to the others.

A part is copied only where everything in the recipes agrees that could make a difference to it;
the stages then find it standing and verify it like any other.
"""

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmrec.data.files import unique
from llmrec.recipe import Recipe
from llmrec.runs.folder import RunFolder
from llmrec.studies.cells import Cell

log = logging.getLogger("llmrec")
# Of a whole recipe, what makes no difference to weights.
_NAMES = {"name", "output_dir", "systems", "evaluate"}


@dataclass(frozen=True)
class Part:
    """A folder of a run: `where` it stands, and what in a recipe it `depends` on, None where a run
    of this recipe has no such folder. `holds`: the path inside that is there once it is whole."""

    where: Callable[[RunFolder], Path]
    depends: Callable[[Recipe], Any]
    holds: str


def _sft(recipe: Recipe) -> Any:
    if recipe.soft is None or recipe.soft.sft_adapter is not None:
        return None
    return recipe.model_dump(mode="json", exclude={*_NAMES, "soft"})


def _answers(recipe: Recipe) -> Any:
    if recipe.soft is None or recipe.soft.answers is not None:
        return None
    own = recipe.soft.model_dump(mode="json", include={"distill", "sft_adapter"})
    return [recipe.model_dump(mode="json", exclude={*_NAMES, "soft"}), own]


def _network(recipe: Recipe) -> Any:
    if recipe.network is None:
        return None
    return recipe.model_dump(mode="json", exclude={*_NAMES, "conformal"})


PARTS = (
    Part(
        lambda folder: folder.data,
        lambda recipe: recipe.model_dump(mode="json", include={"seed", "data"}),
        "manifest.json",
    ),
    Part(lambda folder: folder.network("base"), _network, "manifest.json"),
    Part(lambda folder: folder.sft.adapter, _sft, "manifest.json"),
    Part(lambda folder: folder.answers, _answers, "answers.parquet"),
)


@dataclass(frozen=True)
class Shared:
    """By cell, what each of its `PARTS` is made from."""

    keys: Mapping[str, Sequence[str | None]]

    @staticmethod
    def of(cells: Iterable[Cell]) -> "Shared":
        """Of all cells of a study."""
        return Shared({cell.name: [_key(part, cell) for part in PARTS] for cell in cells})

    def awaits(self, cell: Cell, other: Cell, cells: Sequence[Cell]) -> bool:
        """Whether `other`, at work, has yet to make a part that `cell` could copy from it."""
        return any(
            wanted is not None
            and wanted == made
            and not any(
                wanted == self.keys[c.name][n] and (part.where(c.folder) / part.holds).is_file()
                for c in cells
            )
            for n, (part, wanted, made) in enumerate(
                zip(PARTS, self.keys[cell.name], self.keys[other.name], strict=True)
            )
        )


def share(cell: Cell, others: Iterable[Cell]) -> list[str]:
    """Copy to `cell` what is not there and stands in one of the others; the parts copied."""
    copied = []
    for part in PARTS:
        target, wanted = part.where(cell.folder), _key(part, cell)
        if wanted is None or target.exists():
            continue
        for other in others:
            source = part.where(other.folder)
            if other.name != cell.name and (source / part.holds).is_file():
                if _key(part, other) != wanted:
                    continue
                _copy(source, target)
                copied.append(str(target.relative_to(cell.folder.root)))
                log.info("study: %s has %s of %s", cell.name, copied[-1], other.name)
                break
    return copied


def _key(part: Part, cell: Cell) -> str | None:
    depends = part.depends(cell.recipe)
    if depends is None:
        return None
    return hashlib.sha256(json.dumps(depends, sort_keys=True).encode()).hexdigest()


def _copy(source: Path, target: Path) -> None:
    staged = target.with_name(f".{target.name}.{unique()}")
    shutil.rmtree(staged, ignore_errors=True)
    staged.parent.mkdir(parents=True, exist_ok=True)
    shutil.copytree(source, staged, ignore=shutil.ignore_patterns(".parts*"))
    os.replace(staged, target)
