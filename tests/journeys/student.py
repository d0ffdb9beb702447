"""A student who wants SOFT on Amazon with one GPU; here a tiny model stands for the large one."""

import json

from journeys.shop import write_amazon
from journeys.walk import SMALL, Journey


def journey(go: Journey) -> None:
    """All of it."""
    category = "Video_Games"
    write_amazon(go.place / "amazon", category)
    recipe = go.place / "mine.yaml"
    with go.step("copy the shipped recipe and validate it"):
        go.llmrec("recipes", "cp", "soft_video_games", recipe)
        go.llmrec("validate", recipe)
    tiny = [
        f"data.source={go.place / 'amazon' / category}.jsonl.gz",
        f"model.base={go.model}",
        "model.dtype=float32",
        "data.k_core=3",
        "data.window=5",
        "data.subset={train: 48, valid: 24, test: 60}",
        "train.bf16=false",
        "train.gradient_accumulation_steps=1",
        "soft.probe=8",
        "soft.distill={beams: 2, max_new_tokens: 6}",
        "decode.beams=10",
        "validation={metric: nll}",
        "evaluate.k=[1, 5, 10]",
        "systems=[popularity, markov, untuned, tuned_sft, tuned]",
        *(setting for setting in SMALL if not setting.startswith("data.subset")),
    ]
    with go.step("train --dry-run before the GPU is paid for"):
        assert go.numbers("train", recipe, "--dry-run", *tiny)["rows"] == 48
    with go.step("run SOFT: fine-tune, distil, train on both, recommend, evaluate, report"):
        go.llmrec("run", recipe, *tiny)
        run = go.place / "runs" / "soft_video_games"
        log = [json.loads(line) for line in (run / "train_log.jsonl").read_text().splitlines()]
        assert any("lambda" in line for line in log)
    with go.step("the page shows the curriculum"):
        page = (run / "report.html").read_text("utf-8")
        assert "the weight of the model" in page
    with go.step("paired tests of SOFT against plain fine-tuning, for the thesis"):
        said = go.llmrec("compare", f"{run}:tuned", f"{run}:tuned_sft", "--format", "latex")
        assert "\\begin{tabular}" in said
