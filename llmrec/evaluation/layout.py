"""Rows of strings as aligned text, Markdown or LaTeX, and records as plain JSON values.

Whatever a cell says stays a cell: bars, line breaks and LaTeX's own characters are escaped. Knows
nothing of metrics.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, is_dataclass
from typing import Any, Literal

import numpy as np

Form = Literal["text", "markdown", "latex"]

UNDEFINED, INFINITE = "\u2013", "\u221e"  # an en dash, the sign of infinity

_LATEX = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "%": r"\%",
    "_": r"\_",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    UNDEFINED: "--",
    INFINITE: r"$\infty$",
}


def laid_out(header: Sequence[str], rows: Sequence[Sequence[str]], form: Form) -> str:
    """A table with the first column to the left and the others to the right, ending in a newline.

    Markdown is GitHub's; LaTeX needs the package booktabs.
    """
    lines = [[" ".join(str(cell).split()) for cell in line] for line in (header, *rows)]
    if form == "latex":
        return _latex(lines)
    if form == "markdown":
        lines = [[cell.replace("\\", "\\\\").replace("|", "\\|") for cell in c] for c in lines]
    widths = [max(3, *(len(line[i]) for line in lines)) for i in range(len(header))]
    texts = [
        [
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        for line in lines
    ]
    if form == "markdown":
        rule = [
            ("-" * width) if i == 0 else "-" * (width - 1) + ":" for i, width in enumerate(widths)
        ]
        return "".join(f"| {' | '.join(text)} |\n" for text in (texts[0], rule, *texts[1:]))
    rule = ["-" * width for width in widths]
    return "".join(f"{'  '.join(text).rstrip()}\n" for text in (texts[0], rule, *texts[1:]))


def _latex(lines: Sequence[Sequence[str]]) -> str:
    texts = [" & ".join(_escaped(cell) for cell in line) + r" \\" for line in lines]
    columns = "l" + "r" * (len(lines[0]) - 1)
    return "\n".join(
        [
            rf"\begin{{tabular}}{{{columns}}}",
            r"\toprule",
            texts[0],
            r"\midrule",
            *texts[1:],
            r"\bottomrule",
            r"\end{tabular}",
            "",
        ]
    )


def _escaped(text: str) -> str:
    return "".join(_LATEX.get(character, character) for character in text)


def number(value: float, decimals: int = 3, sign: bool = False) -> str:
    """`value` with a fixed number of decimals, a dash where it is undefined."""
    if not math.isfinite(value):
        return UNDEFINED if math.isnan(value) else INFINITE if value > 0 else f"-{INFINITE}"
    text = f"{value:+.{decimals}f}" if sign else f"{value:.{decimals}f}"
    return text.replace("-", "", 1) if float(text) == 0 and text.startswith("-") else text


def as_json(value: Any) -> Any:
    """Records, arrays and numbers as what JSON can hold; what is not finite becomes null."""
    if is_dataclass(value) and not isinstance(value, type):
        value = asdict(value)
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): as_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [as_json(item) for item in value]
    return value


def from_json(value: float | None) -> float:
    """A number that `as_json` wrote: null was undefined."""
    return math.nan if value is None else float(value)
