"""Errors meant for the person at the keyboard: what, where, why, and what to do.

The command line prints these without a traceback and exits with their code. Anything else that
reaches it is a defect of llmrec and keeps its traceback.
"""

from collections.abc import Sequence


class LlmrecError(Exception):
    """A failure the user can act on; `exit_code` is what the command line exits with.

    `is_told`: another process has printed it.
    """

    exit_code = 1
    is_told = False


class RecipeError(LlmrecError):
    """The recipe, a flag or the way a command was called is wrong; `problems` one by one."""

    exit_code = 2

    def __init__(self, message: str, problems: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.problems = tuple(problems) or (message,)


class DataError(LlmrecError):
    """The data cannot be used as it is."""

    exit_code = 3
