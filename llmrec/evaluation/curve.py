"""Training curves as SVG text for the report, drawn by matplotlib (extra `report`).

Text and axes take the colour of the page around them, so that one drawing serves light and dark.
The same numbers give the same bytes. Knows no files; matplotlib is imported when a curve is drawn.
"""

import io
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from llmrec.errors import LlmrecError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Stands for the page's own colour until the SVG is written; no curve uses it.
PLACEHOLDER = "#010203"
_CURVE = "#4c78d8"
# Colour, dashes, marker: told apart by any one of the three.
STYLES = ((_CURVE, "-", "o"), ("#d0632a", "--", "s"), ("#26936b", ":", "^"))
_SIZE = (5.2, 3.0)  # inches
_EPOCH = "epoch, the first is 0"


def loss_curve(lines: Sequence[Mapping[str, Any]]) -> str | None:
    """Training loss by step from log lines with `step` and `loss`; None without such lines."""
    points = [(line["step"], line["loss"]) for line in lines if line.get("loss") is not None]
    if not points:
        return None

    def draw(axes: "Axes") -> None:
        axes.plot(*zip(*points, strict=True), color=_CURVE, linewidth=1.6, marker=_marker(points))
        axes.set_ylabel("training loss, nats")

    return svg("loss", draw)


def validation_curve(lines: Sequence[Mapping[str, Any]], uniform_nll: float) -> str | None:
    """Validation NLL with its interval by step, over log N as a dashed line; None without any."""
    points = [line for line in lines if line.get("valid_nll") is not None]
    if not points:
        return None
    steps, values = [p["step"] for p in points], [p["valid_nll"] for p in points]
    banded = [p for p in points if p.get("low") is not None and p.get("high") is not None]

    def draw(axes: "Axes") -> None:
        if banded:
            axes.fill_between(
                [p["step"] for p in banded],
                [p["low"] for p in banded],
                [p["high"] for p in banded],
                color=_CURVE,
                alpha=0.2,
                linewidth=0,
            )
        axes.plot(steps, values, color=_CURVE, linewidth=1.6, marker=_marker(points))
        axes.axhline(uniform_nll, color=PLACEHOLDER, linestyle="--", linewidth=0.9, alpha=0.6)
        axes.annotate(
            "uniform guess",
            (1.0, uniform_nll),
            xycoords=("axes fraction", "data"),
            xytext=(0, 3),
            textcoords="offset points",
            ha="right",
            fontsize=8,
            color=PLACEHOLDER,
        )
        axes.set_ylabel("validation NLL, nats")

    return svg("validation", draw)


def curriculum_curve(lines: Sequence[Mapping[str, Any]]) -> str | None:
    """Lambda by epoch, and what a probe measured where one did; None without `lambda` in a line.

    Lines are those of an epoch's beginning: `epoch`, `lambda` and maybe `distance`, drawn over
    `distance_untuned`, and `probe_equal_to_truth`. All three are numbers without unit.
    """
    begun = [x for x in _by_epoch(lines, "lambda") if not math.isnan(_number(x["lambda"]))]
    if not begun:
        return None
    series = {
        "λ, own answers": [_number(line["lambda"]) for line in begun],
        "distance / untuned": [
            # Over a distance of 0 there is no share: a gap.
            _number(line.get("distance")) / (_number(line.get("distance_untuned")) or math.nan)
            for line in begun
        ],
        "equal to the truth": [_number(line.get("probe_equal_to_truth")) for line in begun],
    }
    highest = max(v for values in series.values() for v in values if not math.isnan(v))

    def draw(axes: "Axes") -> None:
        _draw_series(axes, [line["epoch"] for line in begun], series)
        axes.set_ylim(0.0, 1.0 if highest <= 1 else 1.04 * highest)
        axes.set_ylabel("share")

    return svg("curriculum", draw, _EPOCH)


def branch_losses_curve(lines: Sequence[Mapping[str, Any]]) -> str | None:
    """Mean loss of real targets and of the model's own answers by epoch.

    Lines are those of an epoch's end: `epoch` and `losses`, of which a kind that weighed nothing is
    null and leaves a gap. None where no epoch has a loss of own answers.
    """
    ended = [line for line in _by_epoch(lines, "losses") if isinstance(line["losses"], Mapping)]
    series = {
        name: [_number(line["losses"].get(kind)) for line in ended]
        for name, kind in (("real targets", "real"), ("own answers", "self"))
    }
    if all(map(math.isnan, series["own answers"])):
        return None

    def draw(axes: "Axes") -> None:
        _draw_series(axes, [line["epoch"] for line in ended], series)
        axes.set_ylabel("mean loss, nats")

    return svg("branch losses", draw, _EPOCH)


def _by_epoch(lines: Sequence[Mapping[str, Any]], key: str) -> list[Mapping[str, Any]]:
    """The lines with `key` in order of their epochs, the last where an epoch has several."""
    last = {
        line["epoch"]: line for line in lines if key in line and isinstance(line.get("epoch"), int)
    }
    return [last[epoch] for epoch in sorted(last)]


def _number(value: Any) -> float:
    """`value` as it is if it is a finite number, otherwise NaN, which is drawn as a gap."""
    known = isinstance(value, (int, float)) and math.isfinite(value)
    return float(value) if known else math.nan


def _draw_series(
    axes: "Axes", epochs: Sequence[int], series: Mapping[str, Sequence[float]]
) -> None:
    """One line for each name that has a number, with a legend above the drawing."""
    for place, (name, values) in enumerate(series.items()):
        if all(map(math.isnan, values)):
            continue
        colour, dashes, marker = STYLES[place]
        # The first on top: of two equal values, the corners of the second's marker still show.
        axes.plot(
            epochs,
            values,
            color=colour,
            linestyle=dashes,
            linewidth=1.6,
            marker=marker,
            markersize=5.5,
            clip_on=False,
            zorder=9 - place,
            label=name,
        )
    axes.locator_params(axis="x", integer=True, min_n_ticks=1)
    axes.legend(
        loc="lower left",
        bbox_to_anchor=(0.0, 1.0),
        ncols=len(STYLES),
        frameon=False,
        fontsize=8,
        labelcolor=PLACEHOLDER,
        borderpad=0.0,
        borderaxespad=0.8,
        handlelength=2.4,
        handletextpad=0.5,
        columnspacing=1.2,
    )


def _marker(points: Sequence[Any]) -> str:
    return "o" if len(points) <= 12 else ""


def svg(name: str, draw: "Callable[[Axes], None]", across: str = "step") -> str:
    """What `draw` draws, as SVG text to stand in a page; `across` is said below the drawing.

    Raises LlmrecError without matplotlib.
    """
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError:
        raise LlmrecError(
            "the report's drawings need matplotlib, which is not installed; install it "
            "with the extra `report`: pip install 'llmrec[report]'"
        ) from None
    # The salt makes ids repeatable, and different in the drawings of one page.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": f"llmrec {name}"}):
        figure = Figure(figsize=_SIZE, layout="constrained")
        axes = figure.add_subplot()
        draw(axes)
        axes.set_xlabel(across)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color=PLACEHOLDER, alpha=0.12, linewidth=0.8)
        axes.spines[["left", "bottom"]].set_color(PLACEHOLDER)
        axes.tick_params(colors=PLACEHOLDER)
        for label in (axes.xaxis.label, axes.yaxis.label):
            label.set_color(PLACEHOLDER)
        stream = io.StringIO()
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None})
    return _inline(stream.getvalue(), name)


def _inline(svg: str, name: str) -> str:
    """Ready to stand inside HTML: no prolog, no metadata, no idle ids, the page's font."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(
        r' id="([^"]*)"', lambda m: m[0] if f"#{m[1]}" in svg else "", svg
    )  # pages hold several drawings, and ids must be unique in a page
    svg = re.sub(r"font-family: [^;\"]*", "font-family: inherit", svg)
    # Its style sheet would style the whole page.
    svg = re.sub(r"<style.*?</style>\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    svg = svg.replace("<svg ", f'<svg role="img" aria-label="{name} curve" ', 1)
    return svg.replace(PLACEHOLDER, "currentColor").strip()
