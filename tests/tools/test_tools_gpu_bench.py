"""tools/bench/gpu.py goes through its parts on tiny shapes, with no more packages than it says."""

import json
import subprocess
import sys
from dataclasses import replace
from functools import partial
from importlib import import_module
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "tools" / "bench" / "gpu.py"
# A GPU machine that is lent may have torch, transformers and peft and little else.
MISSING = ("pydantic", "pyarrow", "jinja2", "rapidfuzz", "faiss")


@pytest.fixture
def bench(monkeypatch):
    """The scripts as modules: `gpu` and `gpu_sides`."""
    monkeypatch.syspath_prepend(SCRIPT.parent)
    return import_module("gpu"), import_module("gpu_sides")


def test_every_part_gives_a_figure(tmp_path):
    out = tmp_path / "page.md"
    start = (
        "import runpy, sys\n"
        f"sys.modules.update(dict.fromkeys({MISSING}))\n"  # importing one of them raises
        f"sys.path.insert(0, {str(SCRIPT.parent)!r})\n"
        f"sys.argv = {[str(SCRIPT), '--smoke', '--out', str(out)]!r}\n"
        f"runpy.run_path({str(SCRIPT)!r}, run_name='__main__')\n"
    )
    done = subprocess.run([sys.executable, "-c", start], capture_output=True, text=True)
    figures = [json.loads(line) for line in done.stdout.splitlines()]

    assert done.returncode == 0, done.stderr[-2000:]
    names = [f["figure"] for f in figures]
    assert {name: names.count(name) for name in names} == {
        "equal searches": 1,
        "equal graphs": 1,
        "equal gradients": 1,
        "decode 2": 2,
        "best-first 2": 1,
        "own answers": 2,
        "memory": 1,
        "pairs": 1,
        "decode 3": 2,
        "best-first 3": 1,
    }
    assert not [f for f in figures if "failed" in f or "skipped" in f]
    assert all(f["equal"] for f in figures[:3])
    for figure in figures:
        assert {"device", "dtype", "torch", "transformers", "machine"} <= figure.keys()
        if figure["figure"].startswith(("decode", "own")):
            # In float32 both sides answer alike, in batches and one at a time.
            assert figure["valid"]
            assert figure["same_lists"] == figure["same_items"] == 1.0
            assert figure["ratio"] > 0
            assert figure["rows_behind"] > 0
        if figure["figure"].startswith(("decode", "own", "best")):
            assert figure["graphs_same_lists"] == figure["graphs_same_items"] == 1.0
            assert figure["graphs"] > 0
            assert figure["graphs_ratio"] > 0
    text = out.read_text("utf-8")
    assert text.count("| tiny |") == len(figures) - 3
    assert "in float32 with a small model: passed" in text


def test_without_time_every_part_says_that_it_was_left_out(tmp_path, bench, monkeypatch, capsys):
    out = tmp_path / "page.md"
    arguments = ["gpu.py", "--smoke", "--minutes", "0", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", arguments)
    bench[0].main()

    figures = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(figures) == 13
    assert all(f["skipped"] == "0 s were left" for f in figures)
    assert out.read_text("utf-8").count("not measured (0 s were left)") == 13


def test_the_parts_that_are_wanted_come_in_the_wanted_order(bench, monkeypatch, capsys):
    arguments = ["gpu.py", "--smoke", "--minutes", "0", "--only", "decode 2,pairs,equal gr"]
    monkeypatch.setattr(sys, "argv", arguments)
    bench[0].main()

    names = [json.loads(line)["figure"] for line in capsys.readouterr().out.splitlines()]
    assert names == ["decode 2", "decode 2", "pairs", "equal graphs", "equal gradients"]


def test_bandwidth_is_that_of_the_device(bench, monkeypatch):
    sides = bench[1]
    monkeypatch.setattr(sides.torch.cuda, "get_device_name", lambda: "NVIDIA H100 80GB HBM3")
    assert sides.bandwidth("cuda") == 3.35e12
    assert sides.bandwidth("cpu") == 4.8e12


def test_a_part_that_fails_is_named_and_the_others_go_on(bench, monkeypatch, capsys):
    gpu, _ = bench

    def broken():
        raise RuntimeError("no such kernel\nmore")

    monkeypatch.setattr(gpu, "parts", lambda *_: [("one", broken), ("two", lambda: {"x": 1})])
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--smoke"])
    with pytest.raises(SystemExit, match="a part failed"):
        gpu.main()

    one, two = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert one["failed"] == "RuntimeError: no such kernel"
    assert two["x"] == 1


def test_graphs_that_fail_are_named_beside_the_plain_figures(bench, monkeypatch, capsys):
    gpu, sides = bench

    class Broken:
        def __init__(self, _):
            raise RuntimeError("no capture here\nmore")

    monkeypatch.setattr(sides, "FixedSteps", Broken)
    plan, name = gpu.SMOKE, "decode 2"
    made = sides.Bench(plan, plan.sizes[0])
    part = partial(gpu.decoding, made, gpu.Clock(60, 1), name, 2, True)
    monkeypatch.setattr(gpu, "parts", lambda *_: [(name, part)])
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--smoke"])
    with pytest.raises(SystemExit, match="a part failed"):
        gpu.main()

    figure = json.loads(capsys.readouterr().out)
    assert figure["graphs_failed"] == "RuntimeError: no capture here"
    assert figure["graphs"] is None
    assert figure["llmrec"] > 0
    assert figure["same_lists"] == 1.0
    page = gpu.page([figure], [])
    assert "| tiny | 2 | allowed tokens |" in page
    assert "- decode 2: graphs not measured (RuntimeError: no capture here)" in page


def test_the_roofline_is_the_arithmetic_of_the_tokens_one_by_one(bench):
    gpu, sides = bench
    model = sides.Bench(replace(gpu.FULL, device="meta", items=50), gpu.FULL.sizes[0])
    model.length = prompt = 300
    kv, head = 8 * 128, 3072 * 128256
    body = 28 * (2 * 3072 * 3072 + 2 * 3072 * kv + 3 * 3072 * 8192 + 2 * 3072) + 3072
    attention = 4 * 28 * 3072  # queries by keys and weights by values, a token seen
    work = 2 * head  # after the prompt
    for token in range(prompt):
        work += 2 * body + attention * (token + 1)
    for _beam in range(10):
        for depth in range(1, 10):
            work += 2 * (body + head) + attention * (prompt + depth)

    assert sides.roofline(model, read=90) == pytest.approx(790e12 / work, rel=1e-3)
    # A user alone: a pass behind the prompt reads all weights, longer than its arithmetic takes.
    seconds = 2 * 300 * body / 790e12 + 9 * 2 * (body + head) / 4.8e12
    alone = sides.roofline(model, read=90, batch=1, passes=9)
    assert alone == pytest.approx(1 / seconds, rel=0.02)
