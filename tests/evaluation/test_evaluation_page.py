"""The report page: complete, honest about rows below a baseline, and deaf to hostile text."""

import builtins
import html.parser
import re
from dataclasses import replace

import numpy as np
import pytest

from llmrec.errors import LlmrecError
from llmrec.evaluation.beyond import beyond_accuracy
from llmrec.evaluation.comparison import compared
from llmrec.evaluation.curve import (
    branch_losses_curve,
    curriculum_curve,
    loss_curve,
    validation_curve,
)
from llmrec.evaluation.page import Recommendation, Report, Shelf, SystemFacts, Visitor, render
from llmrec.evaluation.table import metric_table

HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "</title></style><svg onload=alert(1)>",
    "{{ 7 * 7 }}{% raw %}",
    "<b>bold</b> & 'quoted' \"title\"",
    "javascript:alert(1)",
    "-->]]><!--",
]
LINES = [
    {"step": 10, "loss": 8.0},
    {"step": 20, "loss": 7.0, "seconds": 3},
    {"step": 20, "valid_nll": 7.2, "low": 7.0, "high": 7.4},
    {"step": 40, "valid_nll": 6.9, "low": None, "high": None},
]

BEGUN = [
    {
        "step": 0,
        "epoch": 0,
        "weights": [0.0, 1.0],
        "lambda": 1.0,
        "distance": 5.0,
        "distance_untuned": 5.0,
        "probe_equal_to_truth": 0.0,
    },
    {
        "step": 9,
        "epoch": 1,
        "weights": [0.4, 0.6],
        "lambda": 0.6,
        "distance": 4.0,
        "distance_untuned": 5.0,
        "probe_equal_to_truth": 0.25,
    },
    {
        "step": 18,
        "epoch": 2,
        "weights": [1.0, 0.0],
        "lambda": 0.0,
        "distance": 6.0,
        "distance_untuned": 5.0,
        "probe_equal_to_truth": 0.5,
    },
]
ENDED = [
    {"step": 9, "epoch": 0, "losses": {"real": None, "self": 3.0}},
    {"step": 18, "epoch": 1, "losses": {"real": 2.5, "self": 2.0}},
    {"step": 27, "epoch": 2, "losses": {"real": 2.0, "self": None}},
]
PROBE = ["distance / untuned", "equal to the truth"]


class Elements(html.parser.HTMLParser):
    """Which elements and attributes a browser would see, and the text between them."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.attributes, self.texts = [], [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [name for name, _ in attrs]

    def handle_data(self, data):
        self.texts.append(data)


def report(text="The Matrix (1999)", tuned=0.5):
    """A report in which `text` stands wherever data can put text; tuned - markov NLL = `tuned`."""
    rng = np.random.default_rng(0)
    users = np.arange(100)
    base = rng.normal(6, 1, 100)
    nll = {"markov": base, "untuned": base + 3, "tuned": base + tuned + rng.normal(0, 0.1, 100)}
    values = {s: {"NLL": v, "HR@10": 1.0 * (v < 5.5)} for s, v in nll.items()}
    options = {"samples": 200, "confidence": 0.95, "seed": 0}
    cold = users < 10
    groups = {"all": users >= 0, "warm": ~cold, "cold": cold}
    beyond = beyond_accuracy([np.array([0, 1])], np.array([3, 1]), [np.array([1])], 10)
    pairs = [("untuned", "markov"), ("tuned", "markov"), ("tuned", "untuned")]
    items = (Recommendation(text, True), Recommendation(None, False), Recommendation(text, False))
    return Report(
        name="demo",
        data=text,
        examples=100,
        users=100,
        catalog=1682,
        k=10,
        table=metric_table(values, groups, users, 1682, notes=[text], **options),
        comparisons=tuple(
            c
            for metric in ("NLL", "HR@10")
            for c in compared(
                metric, pairs, {s: v[metric] for s, v in values.items()}, users, **options
            )
        ),
        best_baseline={"NLL": "markov", "HR@10": "markov"},
        systems=tuple(SystemFacts(s, s != "markov", beyond, {"note": text}, 1.5) for s in nll),
        curves=(),
        visitors=(Visitor(text, (text, text), 3, text, (Shelf("tuned", items, 2.0),)),),
        facts=((text, text),),
        recipe=text,
    )


def sentences(page):
    return " ".join(" ".join(Elements(page).texts).split())


def test_a_model_below_the_baseline_is_said_to_be_below():
    page = sentences(render(report(tuned=0.5)))
    assert "By NLL, untuned and tuned stand below the best baseline, markov." in page
    assert re.search(r"tuned stands below markov: NLL 0\.\d+ nats higher", page)
    assert re.search(r"tuned stands above untuned: NLL 2\.\d+ nats lower", page)


def test_of_baselines_alone_the_best_is_named():
    made = report(tuned=0.5)
    bare = replace(made, systems=tuple(replace(s, is_model=False) for s in made.systems))
    told = "By NLL, markov is the best of 3 baselines; untuned and tuned stand below markov."
    assert told in sentences(render(bare))


def test_a_model_above_and_one_that_cannot_be_told():
    above = sentences(render(report(tuned=-0.5)))
    assert (
        "By NLL, tuned stands above the best baseline, markov; "
        "untuned stands below the best baseline, markov." in above
    )
    level = sentences(render(report(tuned=0.0)))
    assert "tuned cannot be told apart from the best baseline, markov" in level


def test_everything_is_on_the_page():
    made = report()
    page = sentences(render(made))
    for text in (
        "uniform guess",
        "7.428",
        "100 test examples of 100 users",
        "cold",
        "n = 10",
        "Recipe",
        "not in the catalog",
        "The Matrix (1999) \u2713",
        "and 3 earlier",
    ):
        assert text in page, text
    cell = made.table.cell("tuned", "NLL")
    assert f"{cell.mean:.3f} {cell.low:.3f} to {cell.high:.3f}" in page


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_becomes_no_html(text):
    plain, page = Elements(render(report())), render(report(text))
    seen = Elements(page)
    assert seen.tags == plain.tags
    assert seen.attributes == plain.attributes
    assert "script" not in seen.tags
    # And it is shown as it is, not dropped, not rendered again.
    assert any(text in part for part in seen.texts)


def test_the_page_needs_no_other_file():
    page = render(replace(report(), curves=(("loss", loss_curve(LINES)),)))
    assert not re.search(r"""(src|href)=["'](?!#)""", page)
    assert "@import" not in page
    assert "url(http" not in page
    assert "default-src 'none'" in page


def test_without_baselines_or_models_the_page_still_stands():
    bare = replace(report(), comparisons=(), best_baseline={}, visitors=())
    page = sentences(render(bare))
    assert "No model could be compared with a baseline here." in page


def test_curves_are_drawn_repeatably_in_the_colour_of_the_page():
    def drawn():
        return [
            loss_curve(LINES),
            validation_curve(LINES, 7.4),
            curriculum_curve(BEGUN),
            branch_losses_curve(ENDED),
        ]

    svgs = drawn()
    assert svgs == drawn()
    for svg in svgs:
        assert svg.startswith("<svg ")
        assert svg.endswith("</svg>")
        assert "currentColor" in svg
        assert "<style" not in svg
        assert "<metadata" not in svg
        assert "#010203" not in svg
    ids = [name for svg in svgs for name in re.findall(r' id="([^"]*)"', svg)]
    assert len(ids) == len(set(ids))
    assert loss_curve(LINES[2:]) is None
    assert validation_curve(LINES[:2], 7.4) is None


def labels(svg):
    """The texts of a drawing that are no numbers."""
    texts = map(str.strip, Elements(svg).texts)
    return [text for text in texts if text and not re.fullmatch(r"\d+(\.\d+)?", text)]


def points(svg):
    """How many points each line has, by the colours of the markers; the legend draws one more."""
    used = re.findall(r'<use [^>]*style="fill: (#\w+)', svg)
    return sorted((used.count(colour) - 1 for colour in set(used)), reverse=True)


def test_the_curriculum_is_drawn_with_what_is_known():
    across = "epoch, the first is 0"
    full = curriculum_curve([*LINES, *BEGUN, *ENDED])
    assert labels(full) == [across, "share", "λ, own answers", *PROBE]
    assert points(full) == [3, 3, 3]
    assert ">1.2<" in full  # the distance has grown past the untuned one, and stays in sight
    bare = curriculum_curve([{k: x[k] for k in ("step", "epoch", "lambda")} for x in BEGUN])
    assert labels(bare) == [across, "share", "λ, own answers"]
    assert ">1.2<" not in bare
    assert ">1.0<" in bare
    assert curriculum_curve([*LINES, *ENDED]) is None


def test_epochs_are_whole_numbers_and_each_counts_once():
    one = curriculum_curve(BEGUN[:1])
    texts = [text.strip() for text in Elements(one).texts if text.strip()]
    assert texts[:2] == ["0", "epoch, the first is 0"]  # a single tick below the drawing
    # An interrupted training can log an epoch again; its last word holds.
    stale = [{**x, "lambda": 0.9} for x in BEGUN] + [{**x, "losses": {"self": 9.0}} for x in ENDED]
    assert curriculum_curve([*stale, *BEGUN[::-1]]) == curriculum_curve(BEGUN)
    assert branch_losses_curve([*stale, *ENDED[::-1]]) == branch_losses_curve(ENDED)


def test_losses_of_each_kind_are_drawn_if_there_are_own_answers():
    svg = branch_losses_curve([*LINES, *BEGUN, *ENDED])
    assert labels(svg) == [
        "epoch, the first is 0",
        "mean loss, nats",
        "real targets",
        "own answers",
    ]
    assert points(svg) == [2, 2]  # nothing where a kind had no weight
    only = branch_losses_curve(ENDED[:1])
    assert labels(only) == ["epoch, the first is 0", "mean loss, nats", "own answers"]
    plain = [{**x, "losses": {"real": 2.0, "self": None}} for x in ENDED]
    assert branch_losses_curve([*LINES, *BEGUN, *plain]) is None


@pytest.mark.parametrize("value", [None, float("nan"), float("inf"), *HOSTILE])
def test_a_log_value_that_is_no_number_is_a_gap(value):
    keys = ("distance", "distance_untuned", "probe_equal_to_truth")
    assert labels(curriculum_curve([{**x, **dict.fromkeys(keys, value)} for x in BEGUN])) == [
        "epoch, the first is 0",
        "share",
        "λ, own answers",
    ]
    some = curriculum_curve([*BEGUN[:2], {**BEGUN[2], **dict.fromkeys(keys, value)}])
    assert points(some) == [3, 2, 2]
    odd = {**ENDED[1], "losses": {"real": value, "self": value}}
    assert points(branch_losses_curve([ENDED[0], odd, ENDED[2]])) == [1, 1]
    assert curriculum_curve([{**x, "lambda": value} for x in BEGUN]) is None
    assert branch_losses_curve([{**x, "losses": value} for x in ENDED]) is None
    assert curriculum_curve([{**x, "epoch": value} for x in BEGUN]) is None


def test_a_distance_of_zero_has_no_share():
    zero = [{**x, "distance": 0.0, "distance_untuned": 0.0} for x in BEGUN]
    assert PROBE[0] not in labels(curriculum_curve(zero))


def test_missing_matplotlib_names_the_extra(monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(LlmrecError, match=r"llmrec\[report\]"):
        loss_curve(LINES)
    assert loss_curve([]) is None  # nothing to draw needs nothing
