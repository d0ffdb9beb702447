"""The page of a study, as HTML that needs no other file and as Markdown with its drawings beside.

What it says are records that are already computed. Titles and settings are data: HTML escapes them,
and tables in Markdown keep a cell a cell. Knows no study and no run folder.
"""

from dataclasses import dataclass
from pathlib import Path

import jinja2
from markupsafe import Markup

from llmrec.evaluation.layout import laid_out
from llmrec.evaluation.page import Sheet

TEMPLATE = "study.html.jinja"
# A drawing in a file of its own has no page around it to take its colours from.
_ALONE = '<svg style="color:#444;background:#fff" '


@dataclass(frozen=True)
class Drawing:
    """`svg` made by `llmrec.evaluation.study_curves`; `name` is part of a file's name."""

    name: str
    caption: str
    svg: str


@dataclass(frozen=True)
class Part:
    """One section of the page."""

    heading: str
    text: str = ""
    sheet: Sheet | None = None
    drawings: tuple[Drawing, ...] = ()


@dataclass(frozen=True)
class StudyPage:
    """`verdict` is one sentence on whether the study says anything; `void` that it does not."""

    title: str
    about: str
    void: bool
    verdict: str
    facts: tuple[str, ...]
    parts: tuple[Part, ...]


def html(page: StudyPage) -> str:
    """The page as HTML text."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["drawn"] = lambda svg: Markup(svg)  # noqa: S704  our own drawings
    return environment.get_template(TEMPLATE).render(page=page)


def markdown(page: StudyPage, stem: str) -> tuple[str, dict[str, str]]:
    """The page as Markdown, and the SVG files beside it, whose names begin with `stem`."""
    lines = [f"# {page.title}", ""]
    lines += [f"**Void.** {page.verdict}" if page.void else page.verdict, ""]
    lines += [page.about.strip(), ""] if page.about.strip() else []
    for fact in page.facts:
        lines += [fact, ""]
    files = {}
    for part in page.parts:
        lines += [f"## {part.heading}", ""]
        lines += [part.text, ""] if part.text else []
        if part.sheet is not None:
            lines += [laid_out(part.sheet.header, part.sheet.rows, "markdown")]
        for drawing in part.drawings:
            name = f"{stem}-{drawing.name}.svg"
            files[name] = drawing.svg.replace("<svg ", _ALONE, 1) + "\n"
            lines += [f"![{drawing.caption}]({name})", "", drawing.caption, ""]
    return "\n".join(lines).rstrip() + "\n", files
