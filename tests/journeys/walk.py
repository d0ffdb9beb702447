"""What the journeys have in common: commands as a person types them, steps with their time."""

import io
import json
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

from llmrec.cli import app
from llmrec.errors import LlmrecError

# What makes an experiment small enough for a tiny model on one core.
SMALL = (
    "data.subset={train: 600, valid: 20, test: 60}",
    "prompt.max_tokens=300",
    "rows.count=48",
    "train.num_train_epochs=1",
    "train.per_device_train_batch_size=8",
    "train.learning_rate=0.003",
    "train.dataloader_pin_memory=false",
    "decode.top_k=10",
    "evaluate.samples=200",
)


@contextmanager
def logged_to(said: io.StringIO) -> Iterator[None]:
    """What llmrec logs, as the command line has it on stderr."""
    logger, handler = logging.getLogger("llmrec"), logging.StreamHandler(said)
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


class Journey:
    """Somebody's way through llmrec in the folder `place`, with `model` as the base."""

    def __init__(self, name: str, place: Path, model: Path) -> None:
        self.name, self.place, self.model = name, place, model
        self.steps: list[tuple[str, float]] = []

    @contextmanager
    def step(self, what: str) -> Iterator[None]:
        """Something a person does; noted with the seconds it took."""
        began = time.monotonic()
        yield
        self.steps.append((what, time.monotonic() - began))

    def llmrec(self, *words: Any, code: int = 0) -> str:
        """What a command prints on stdout, or its error where it is to end with another code."""
        out, said = io.StringIO(), io.StringIO()
        with redirect_stdout(out), redirect_stderr(said), logged_to(said):
            try:
                ended, told = app([str(word) for word in words], standalone_mode=False) or 0, ""
            except LlmrecError as error:
                ended, told = error.exit_code, str(error)
        self.log = said.getvalue()
        assert ended == code, f"{words}: {told or self.log}"
        return told or out.getvalue()

    def numbers(self, *words: Any) -> Any:
        """What a command prints with --json."""
        return json.loads(self.llmrec(*words, "--json"))

    def told(self) -> str:
        """The steps and their time."""
        lines = [f"{self.name}: {sum(seconds for _, seconds in self.steps):.1f} s"]
        return "\n".join([*lines, *(f"  {seconds:5.1f} s  {what}" for what, seconds in self.steps)])
