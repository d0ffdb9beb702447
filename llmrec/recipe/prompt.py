"""How a history becomes text."""

from datetime import date
from typing import Annotated, Literal

from pydantic import Field, field_validator

from llmrec.recipe.section import MOST, Count, Section, Word


class Prompt(Section):
    """How a history becomes text."""

    task: Literal["next_item", "next_item_quoted", "similar_users"] = "next_item"
    """Which shipped template. next_item: the history alone, a title a line; next_item_quoted: the
    same in one sentence, titles in double quotes; similar_users: also demonstrations, votes and
    candidates, where there are any."""
    domain: Literal["movie", "book", "game", "music", "product"] = "movie"
    """Which shipped template: its words for items."""
    file: Word | None = None
    """A template file of your own, instead of those."""
    form: Literal["plain", "chat"] = "plain"
    """Plain text, or turns of the model's chat template."""
    letters: bool = False
    """Candidates are shown with letters, and the answer is the letter of one."""
    today: Annotated[str, Field(pattern=r"^[0-9]{4}-[0-9]{2}-[0-9]{2}$")] = "2024-07-26"
    """The day that a chat template which names one is told, whatever the clock says."""
    max_history: Count = 10
    """Latest titles shown."""
    max_tokens: Annotated[int, Field(ge=16, le=MOST)] = 700
    """Longest prompt; the oldest titles are left out to keep to it."""

    @field_validator("today")
    @classmethod
    def _a_day(cls, today: str) -> str:
        date.fromisoformat(today)
        return today
