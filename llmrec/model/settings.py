"""What the libraries refuse of `train` before the first batch is read, as a mistake in the recipe.

Knows no recipe: only that nothing but settings has been looked at until then.
"""

import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from llmrec.errors import LlmrecError, RecipeError
from llmrec.model.memory import ran_out

_REFUSALS = (ValueError, TypeError, KeyError, AttributeError, RuntimeError, ImportError)


@contextmanager
def judged_by_libraries(begun: Callable[[], bool]) -> Iterator[None]:
    """Raises RecipeError for what a library raises inside until `begun()`; all else as it is."""
    try:
        yield
    except _REFUSALS as error:
        if isinstance(error, LlmrecError) or ran_out(error) or begun() or _is_ours(error):
            raise
        said = " ".join(str(error).split()) or "no reason given"
        raise RecipeError(
            f"train: before the first step {_library(error)} refuses a value: "
            f"{type(error).__name__}: {said[:300]}; leave out or change the key of `train` that "
            "this is about"
        ) from error


def _is_ours(error: BaseException) -> bool:
    """Whether llmrec itself raised it, which is a defect of llmrec."""
    return _module(error).startswith("llmrec")


def _library(error: BaseException) -> str:
    return _module(error).partition(".")[0]


def _module(error: BaseException) -> str:
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    return str(frames[-1].f_globals.get("__name__", "")) if frames else ""
