"""Training curves as SVG text for the report, drawn by matplotlib (extra `report`).

Text and axes take the colour of the page around them, so that one drawing serves light and dark.
The same numbers give the same bytes. Knows no files; matplotlib is imported when a curve is drawn.
"""

import io
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from llmrec.errors import LlmrecError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Stands for the page's own colour until the SVG is written; no curve uses it.
_PLACEHOLDER = "#010203"
_CURVE = "#4c78d8"
_SIZE = (5.2, 3.0)  # inches


def loss_curve(lines: Sequence[Mapping[str, Any]]) -> str | None:
    """Training loss by step from log lines with `step` and `loss`; None without such lines."""
    points = [(line["step"], line["loss"]) for line in lines if line.get("loss") is not None]
    if not points:
        return None

    def draw(axes: "Axes") -> None:
        axes.plot(*zip(*points, strict=True), color=_CURVE, linewidth=1.6, marker=_marker(points))
        axes.set_ylabel("training loss, nats")

    return _svg("loss", draw)


def validation_curve(lines: Sequence[Mapping[str, Any]], uniform_nll: float) -> str | None:
    """Validation NLL with its interval by step, over log N as a dashed line; None without any."""
    points = [line for line in lines if line.get("valid_nll") is not None]
    if not points:
        return None
    steps, values = [p["step"] for p in points], [p["valid_nll"] for p in points]
    banded = [p for p in points if p.get("low") is not None and p.get("high") is not None]

    def draw(axes: "Axes") -> None:
        if banded:
            axes.fill_between([p["step"] for p in banded], [p["low"] for p in banded],
                              [p["high"] for p in banded], color=_CURVE, alpha=0.2,
                              linewidth=0)  # fmt: skip
        axes.plot(steps, values, color=_CURVE, linewidth=1.6, marker=_marker(points))
        axes.axhline(uniform_nll, color=_PLACEHOLDER, linestyle="--", linewidth=0.9, alpha=0.6)
        axes.annotate("uniform guess", (1.0, uniform_nll), xycoords=("axes fraction", "data"),
                      xytext=(0, 3), textcoords="offset points", ha="right", fontsize=8,
                      color=_PLACEHOLDER)  # fmt: skip
        axes.set_ylabel("validation NLL, nats")

    return _svg("validation", draw)


def _marker(points: Sequence[Any]) -> str:
    return "o" if len(points) <= 12 else ""


def _svg(name: str, draw: Any) -> str:
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError:
        raise LlmrecError(
            "the report's training curve needs matplotlib, which is not installed; install it "
            "with the extra `report`: pip install 'llmrec[report]'"
        ) from None
    # The salt makes ids repeatable, and different in the two drawings of one page.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": f"llmrec {name}"}):
        figure = Figure(figsize=_SIZE, layout="constrained")
        axes = figure.add_subplot()
        draw(axes)
        axes.set_xlabel("step")
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color=_PLACEHOLDER, alpha=0.12, linewidth=0.8)
        axes.spines[["left", "bottom"]].set_color(_PLACEHOLDER)
        axes.tick_params(colors=_PLACEHOLDER)
        for label in (axes.xaxis.label, axes.yaxis.label):
            label.set_color(_PLACEHOLDER)
        stream = io.StringIO()
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None})
    return _inline(stream.getvalue(), name)


def _inline(svg: str, name: str) -> str:
    """Ready to stand inside HTML: no prolog, no metadata, no idle ids, the page's font."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(
        r' id="([^"]*)"', lambda m: m[0] if f"#{m[1]}" in svg else "", svg
    )  # pages hold two drawings, and ids must be unique in a page
    svg = re.sub(r"font-family: [^;\"]*", "font-family: inherit", svg)
    # Its style sheet would style the whole page.
    svg = re.sub(r"<style.*?</style>\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    svg = svg.replace("<svg ", f'<svg role="img" aria-label="{name} curve" ', 1)
    return svg.replace(_PLACEHOLDER, "currentColor").strip()
