"""What a stage of a run does while it holds the run's folder, called by a command or from Python.

Knows the lock and the processes of a launcher, no stage.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import wraps
from pathlib import Path
from typing import Any

from llmrec.runs.lock import holding
from llmrec.terminal import is_main_process


def alone(verb: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Makes a function of a recipe and a run folder hold the folder for `llmrec <verb>`.

    It raises RecipeError, naming the holder, where another command holds it.
    """

    def around(stage: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(stage)
        def held(recipe: Any, folder: Any, *further: Any, **named: Any) -> Any:
            with held_by_main(folder.root, verb):
                return stage(recipe, folder, *further, **named)

        return held

    return around


def held_by_main(root: Path, verb: str) -> AbstractContextManager[None]:
    """Holds a folder, if this is the main process of a launch, which does it for all."""
    return holding(root, verb) if is_main_process() else nullcontext()
