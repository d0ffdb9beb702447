"""Drawings of a study as SVG text: many trainings in one plot, and metrics against a swept value.

Knows no files; see `llmrec.evaluation.curve` for the drawing itself.
"""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from llmrec.evaluation.curve import PLACEHOLDER, svg

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Points = Sequence[tuple[float, float]]
# Told apart by colour, and by dashes and marker where the colours begin again.
_COLOURS = ("#4c78d8", "#d0632a", "#26936b", "#9650b4", "#a88a17", "#2b97ad", "#c4487f", "#6d7480")
_DASHES, _MARKERS = ("-", "--", ":"), ("o", "s", "^")


def training_curves(
    trainings: Mapping[str, Sequence[Points]], levels: Mapping[str, float], across: str
) -> str | None:
    """Validation NLL of several lines, one curve for each seed; None without a point.

    `levels`: values drawn as straight lines, such as a baseline's. `across` says what x is; it is
    logarithmic where it spans more than a factor of ten.
    """
    points = [point for curves in trainings.values() for curve in curves for point in curve]
    if not points:
        return None

    def draw(axes: "Axes") -> None:
        for place, (name, curves) in enumerate(trainings.items()):
            for number, curve in enumerate(curves):
                axes.plot(
                    *zip(*curve, strict=True),
                    **_style(place),
                    linewidth=1.5,
                    markersize=4,
                    alpha=1.0 if number == 0 else 0.55,
                    label=name if number == 0 else None,
                )
        for name, value in levels.items():
            axes.axhline(value, color=PLACEHOLDER, linestyle="--", linewidth=0.9, alpha=0.6)
            axes.annotate(
                name,
                (1.0, value),
                xycoords=("axes fraction", "data"),
                xytext=(0, 3),
                textcoords="offset points",
                ha="right",
                fontsize=8,
                color=PLACEHOLDER,
            )
        xs = [x for x, _ in points if x > 0]
        if len(xs) == len(points) and max(xs) > 10 * min(xs):
            axes.set_xscale("log")
        axes.set_ylabel("validation NLL, nats")
        _legend(axes)

    return svg("training", draw, across)


def swept_curve(
    lines: Mapping[str, Sequence[tuple[float, float, float, float]]],
    levels: Mapping[str, float],
    metric: str,
    across: str,
) -> str | None:
    """A metric against a swept value; None without a line of two points.

    `lines`: name -> (value, mean, low, high), the interval NaN where there is none.
    """
    drawn = {
        name: [p for p in sorted(points) if math.isfinite(p[1])] for name, points in lines.items()
    }
    drawn = {name: points for name, points in drawn.items() if len(points) > 1}
    if not drawn:
        return None

    def draw(axes: "Axes") -> None:
        for place, (name, points) in enumerate(drawn.items()):
            xs, means, lows, highs = zip(*points, strict=True)
            style = _style(place)
            axes.plot(xs, means, **style, linewidth=1.6, markersize=5, label=name)
            axes.fill_between(xs, lows, highs, color=style["color"], alpha=0.15, linewidth=0)
        for name, value in levels.items():
            axes.axhline(value, color=PLACEHOLDER, linestyle="--", linewidth=0.9, label=name)
        values = [p[0] for points in drawn.values() for p in points]
        if min(values) > 0 and max(values) > 10 * min(values):
            axes.set_xscale("log")
        axes.set_ylabel(metric)
        _legend(axes)

    return svg(f"{metric} by {across}", draw, across)


def _style(place: int) -> dict[str, Any]:
    turn = place // len(_COLOURS)
    return {
        "color": _COLOURS[place % len(_COLOURS)],
        "linestyle": _DASHES[turn % len(_DASHES)],
        "marker": _MARKERS[turn % len(_MARKERS)],
    }


def _legend(axes: "Axes") -> None:
    axes.legend(
        loc="lower left",
        bbox_to_anchor=(0.0, 1.0),
        ncols=2,
        frameon=False,
        fontsize=8,
        labelcolor=PLACEHOLDER,
        borderaxespad=0.4,
    )
