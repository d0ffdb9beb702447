"""Drawings of reliability and set sizes: each system drawn, nothing without data."""

import re

import pytest

from llmrec.evaluation.calibration_curves import coverage_curve, reliability_curve

BINS = {"markov": [(0.05, 0.1), (0.2, 0.15)], "tuned": [(0.1, 0.1), (0.4, 0.2)], "none": []}
SIZES = {"markov": [(30.0, 0.9), (3.0, 0.5)], "tuned": [(400.0, 0.95), (0.01, 0.02)]}


def heights(svg, colour):
    """The y coordinates of the line of one colour, from left to right; not those of the legend."""
    lines = re.findall(r'<path d="([^"]*)"\s+clip-path="[^"]*"\s+style="([^"]*)"', svg)
    (line,) = [path for path, style in lines if f"stroke: {colour}" in style]
    return [float(y) for y in re.findall(r"[ML] \S+ (\S+)", line)]


@pytest.mark.parametrize(("curve", "points"), [(reliability_curve, BINS), (coverage_curve, SIZES)])
def test_every_system_with_points_is_drawn(curve, points):
    svg = curve(points)
    assert svg.startswith("<svg ")
    assert ">markov</text>" in svg
    assert ">tuned</text>" in svg
    assert ">none</text>" not in svg
    assert svg == curve(points)
    assert "#010203" not in svg


def test_reliability_stands_over_a_diagonal():
    svg = reliability_curve({"markov": [(0.1, 0.4)], "tuned": [(0.2, 0.1), (0.3, 0.3)]})
    assert "stroke-dasharray" in svg
    rising = heights(svg, "#d0632a")
    assert rising[0] > rising[1]


def test_sizes_are_on_a_log_axis_in_their_order():
    svg = coverage_curve(SIZES)
    assert [label for label in ("10", "100") if f">{label}</text>" in svg] == ["10", "100"]
    low, high = heights(svg, "#4c78d8")
    assert low > high
    # A set of a hundredth of an item would draw the axis out of shape.
    assert ">0.01</text>" not in svg


def test_no_more_systems_than_are_told_apart_still_draws():
    many = {f"system {i}": [(1.0 + i, 0.5)] for i in range(9)}
    assert coverage_curve(many).count(">system ") == 9


def test_nothing_to_draw():
    assert reliability_curve({"markov": []}) is None
    assert coverage_curve({"markov": [(0.0, 0.1)]}) is None
