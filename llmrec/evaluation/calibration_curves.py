"""Reliability and set sizes of several systems as SVG text for the report.

Like `llmrec.evaluation.curve`, whose drawings these are: the page's own colours, the same bytes for
the same numbers. Knows no files and computes nothing.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from llmrec.evaluation.curve import PLACEHOLDER, STYLES, svg

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Points = Sequence[tuple[float, float]]

# After the colours of the training curves, for more systems than these have lines.
_STYLES = (
    *STYLES,
    ("#a25bc4", "-.", "D"),
    ("#b0892c", "-", "v"),
    ("#d0507c", "--", "P"),
    ("#4aa3b8", ":", "X"),
)


def reliability_curve(systems: Mapping[str, Points]) -> str | None:
    """(mean confidence, accuracy) of each system's bins over the diagonal; None without a point."""
    shown = {system: points for system, points in systems.items() if points}
    if not shown:
        return None
    end = min(1.0, 1.05 * max(max(point) for points in shown.values() for point in points) or 1.0)

    def draw(axes: "Axes") -> None:
        axes.plot([0, end], [0, end], color=PLACEHOLDER, linestyle="--", linewidth=0.9, alpha=0.6)
        _draw_lines(axes, shown)
        axes.set_xlim(0, end)
        axes.set_ylim(0, end)
        axes.set_ylabel("share that was right")

    return svg("reliability", draw, "probability of the first item")


def coverage_curve(systems: Mapping[str, Points]) -> str | None:
    """(mean set size, coverage) of each system, sizes on a log axis; None without a point.

    Sets of less than a tenth of an item on average are left out.
    """
    shown = {
        system: sorted(point for point in points if point[0] >= 0.1)
        for system, points in systems.items()
    }
    shown = {system: points for system, points in shown.items() if points}
    if not shown:
        return None

    def draw(axes: "Axes") -> None:
        _draw_lines(axes, shown)
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.xaxis.set_minor_formatter(lambda value, _: "")
        axes.tick_params(which="minor", color=PLACEHOLDER)
        axes.set_ylim(0, 1)
        axes.set_ylabel("share of targets in the set")

    return svg("coverage", draw, "mean size of a set, items")


def _draw_lines(axes: "Axes", systems: Mapping[str, Points]) -> None:
    """One line for each system, with a legend above; colours begin again after the last."""
    for place, (system, points) in enumerate(systems.items()):
        colour, dashes, marker = _STYLES[place % len(_STYLES)]
        axes.plot(
            [x for x, _ in points],
            [y for _, y in points],
            color=colour,
            linestyle=dashes,
            linewidth=1.4,
            marker=marker,
            markersize=4,
            zorder=9 - place / 100,
            label=system,
        )
    axes.legend(
        loc="lower left",
        bbox_to_anchor=(0.0, 1.0),
        ncols=3,
        frameon=False,
        fontsize=8,
        labelcolor=PLACEHOLDER,
        borderpad=0.0,
        borderaxespad=0.8,
        handlelength=2.4,
        handletextpad=0.5,
        columnspacing=1.2,
    )
