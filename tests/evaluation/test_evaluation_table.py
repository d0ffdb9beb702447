"""The MetricTable, its forms, and comparisons in words."""

import json
import math

import numpy as np
import pytest

from llmrec.evaluation.comparison import Comparison, compared, in_words
from llmrec.evaluation.intervals import PairedTest
from llmrec.evaluation.layout import as_json, laid_out, number
from llmrec.evaluation.table import MetricTable, best_of, group_columns, main_columns, metric_table

OPTIONS = {"samples": 200, "confidence": 0.95, "seed": 0}
COLD = np.array([False, False, False, True])
GROUPS = {
    "all": COLD | True,
    "warm": ~COLD,
    "cold": COLD,
    "tied": COLD & False,
    "untied": COLD | True,
}
VALUES = {
    "markov": {"HR@10": np.array([1.0, 0, 0, 0]), "NLL": np.array([4.0, 6, 8, np.inf])},
    "tgh": {"HR@10": np.array([1.0, 1, 0, 0]), "NLL": np.full(4, np.nan)},
}


def table(**changes):
    options = {**OPTIONS, **changes}
    return metric_table(VALUES, GROUPS, np.arange(4), 100, notes=["a note"], **options)


def test_cells_are_means_of_their_group():
    t = table()
    assert t.systems == ("markov", "tgh")
    assert t.cell("markov", "HR@10").mean == 1 / 4
    assert t.cell("markov", "HR@10", "warm").mean == 1 / 3
    assert t.cell("tgh", "HR@10", "cold").mean == 0
    nll = t.cell("markov", "NLL")
    assert (nll.mean, nll.n, nll.excluded) == (6, 3, 1)
    assert math.isnan(t.cell("tgh", "NLL").mean)
    assert t.uniform_nll == math.log(100)
    assert t.means("HR@10") == {"markov": 0.25, "tgh": 0.5}
    with pytest.raises(KeyError, match="nobody"):
        t.cell("nobody", "HR@10")


def test_a_group_is_measured_as_if_alone():
    alone = metric_table(
        {s: {m: v[~COLD] for m, v in ms.items()} for s, ms in VALUES.items()},
        {"all": np.ones(3, bool)},
        np.arange(3),
        100,
        **OPTIONS,
    )
    assert table().cell("markov", "HR@10", "warm") == alone.cell("markov", "HR@10")


def test_only_keeps_what_has_values():
    t = table()
    shown = t.only([("NLL", "all"), ("HR@10", "warm"), ("HR@10", "tied"), ("HR@99", "all")])
    assert [(c.metric, c.group) for c in shown.columns] == [("NLL", "all"), ("HR@10", "warm")]
    assert main_columns(10)[0] == ("NLL", "all")
    # Nobody is tied here, so tied and untied say nothing that `all` does not.
    assert {group for _, group in group_columns(t, 10)} == {"warm", "cold"}


def test_text():
    lines = table().only([("NLL", "all"), ("HR@10", "all")]).render("text").splitlines()
    assert lines[0].split("  ")[0] == "system"
    assert "NLL, nats, n = 4" in lines[0]
    assert "6.000 [4.000, 8.000] (n = 3)" in lines[2]
    assert lines[3].split()[:2] == ["tgh", "\u2013"]
    assert lines[4].startswith("uniform (log N)")
    assert "4.605" in lines[4]
    assert lines[-1] == "a note"


def test_markdown_and_latex():
    t = table().only([("HR@10", "all")])
    markdown = t.render("markdown").splitlines()
    assert markdown[1].startswith("| ---")
    assert all(line.count("|") == 3 for line in markdown[:4])
    assert "uniform" not in t.render("markdown")  # there is no NLL column
    latex = t.render("latex")
    assert "\\begin{tabular}{lr}" in latex
    assert "% a note" in latex


def test_json_there_and_back():
    t = table()
    said = json.loads(json.dumps(t.to_json(), allow_nan=False))
    assert said["systems"]["markov"]["NLL"]["all"]["mean"] == 6
    assert said["systems"]["tgh"]["NLL"]["all"]["mean"] is None
    back = MetricTable.from_json(said)
    assert back.to_json() == t.to_json()
    assert back.columns == t.columns
    assert back.render("text") == t.render("text")


def test_hostile_names_stay_cells():
    name = "a|b\n\\input{x}_%$&"
    rows = [[name, "1"]]
    markdown = laid_out(["system", "x"], rows, "markdown").splitlines()
    assert len(markdown) == 3
    assert markdown[2].replace("\\|", "").count("|") == 3
    latex = laid_out(["system", "x"], rows, "latex")
    assert r"a|b \textbackslash{}input\{x\}\_\%\$\& & 1 \\" in latex
    assert len(laid_out(["system", "x"], rows, "text").splitlines()) == 3


@pytest.mark.parametrize(
    ("value", "sign", "text"),
    [
        (0.12345, False, "0.123"),
        (0.12345, True, "+0.123"),
        (-0.0001, False, "0.000"),
        (-0.0001, True, "0.000"),
        (-1.5, True, "-1.500"),
        (math.nan, False, "\u2013"),
        (math.inf, False, "\u221e"),
    ],
)
def test_number(value, sign, text):
    assert number(value, sign=sign) == text


def test_as_json_is_plain():
    value = {1: (np.float64("nan"), np.int32(3), np.array([1.5, np.inf])), "b": None, "c": True}
    assert as_json(value) == {"1": [None, 3, [1.5, None]], "b": None, "c": True}


def test_best_knows_the_direction():
    means = {"a": 2.0, "b": 1.0, "c": math.nan, "d": 2.0}
    assert best_of("NLL", means) == "b"
    assert best_of("HR@10", means) == "a"
    assert best_of("HR@10", {"c": math.nan}) is None


def family(metric):
    rng = np.random.default_rng(0)
    base = rng.normal(5, 1, 200)
    values = {
        "markov": base,
        "more": base + 0.5 + rng.normal(0, 0.3, 200),
        "less": base - 0.5 + rng.normal(0, 0.3, 200),
        "same": base + rng.normal(0, 0.3, 200),
        "none": np.full(200, np.nan),
    }
    pairs = [(name, "markov") for name in values if name != "markov"]
    return compared(metric, pairs, values, np.arange(200), **OPTIONS)


def test_standing_knows_the_direction():
    nll = {c.system: c.standing for c in family("NLL")}
    assert nll == {"more": "below", "less": "above", "same": "level"}
    hits = {c.system: c.standing for c in family("HR@10")}
    assert hits == {"more": "above", "less": "below", "same": "level"}


def test_holm_is_within_the_family_and_undefined_tests_do_not_count():
    more = next(c for c in family("NLL") if c.system == "more")
    assert more.test.p_value == pytest.approx(1 / 201)
    assert more.p_holm == pytest.approx(3 / 201)
    assert compared("NLL", [], {}, np.arange(0), **OPTIONS) == []


def test_a_test_that_the_correction_undoes_is_level():
    rng = np.random.default_rng(3)
    values = {f"s{i}": rng.normal(0, 1, 100) for i in range(30)} | {"markov": np.zeros(100)}
    pairs = [(name, "markov") for name in values if name != "markov"]
    found = compared("HR@10", pairs, values, np.arange(100), **OPTIONS | {"samples": 2000})
    clear_alone = [
        c for c in found if c.test.p_value < 0.05 and (c.test.low > 0 or c.test.high < 0)
    ]
    assert clear_alone
    assert all(c.standing == "level" for c in found)


def test_comparison_there_and_back():
    for comparison in family("NLL"):
        assert Comparison.from_json(json.loads(json.dumps(comparison.to_json()))) == comparison


def test_in_words():
    test = PairedTest(-0.172, -0.224, -0.12, 0.0005, 300, 0)
    above = Comparison("NLL", "tuned_guided", "markov", test, 0.003, "above")
    assert in_words(above, 0.95) == (
        "tuned_guided stands above markov: NLL 0.172 nats lower (95 % interval of the difference "
        "-0.224 to -0.120, p = 0.003 after Holm, n = 300)."
    )
    one = PairedTest(0.0, math.nan, math.nan, 1.0, 1, 0)
    level = Comparison("HR@10", "a", "b", one, 1.0, "level")
    assert in_words(level, 0.95) == "a cannot be told apart from b: HR@10 equal on average."
