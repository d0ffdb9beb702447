"""Write a finished run's tables as a page for `results/`.

python tools/results.py runs/demo --command "make demo" --machine "2 CPU cores" --out demo.md
"""

import argparse
import json
from pathlib import Path

from llmrec.evaluation.table import MetricTable, group_columns, main_columns
from llmrec.recipe.loading import load
from llmrec.runs.folder import RunFolder


def main() -> None:
    """Read metrics.json, write Markdown."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("run", type=Path)
    options.add_argument("--command", required=True)
    options.add_argument("--machine", required=True)
    options.add_argument("--out", type=Path, required=True)
    given = options.parse_args()
    folder = RunFolder(given.run)
    metrics = json.loads(folder.metrics.read_text("utf-8"))
    k = max(load(folder.recipe, []).evaluate.k)
    table = MetricTable.from_json(metrics["table"])
    log = [json.loads(line) for line in folder.train_log.read_text("utf-8").splitlines()]
    losses = [line for line in log if "loss" in line]
    valid = [f"step {x['step']}: {x['valid_nll']:.3f}" for x in log if "valid_nll" in x]
    provenance = metrics["provenance"]
    lines = [
        f"# {folder.root.name}",
        "",
        f"`{given.command}` on {given.machine}. llmrec {provenance.get('llmrec')}, seed "
        f"{provenance.get('seed')}, {provenance.get('dtype')}, Python {provenance.get('python')}; "
        + ", ".join(f"{n} {v}" for n, v in provenance.get("packages", {}).items())
        + ".",
        "",
        table.only(main_columns(k)).render("markdown"),
        "",
        "By target:",
        "",
        table.only(group_columns(table, k)).render("markdown"),
        "",
        "Paired differences against the best baseline by each metric and of tuned against untuned "
        "(in brackets 95 % bootstrap intervals; p by sign flips after Holm):",
        "",
        "| | metric | difference | p | n |",
        "|---|---|---|---|---|",
        *(
            f"| {c['system']} against {c['reference']} | {c['metric']} | {c['difference']:+.3f} "
            f"[{c['low']:+.3f}, {c['high']:+.3f}] | {c['p_holm']:.3f} | {c['n']} |"
            for c in metrics["comparisons"]
            if metrics["systems"][c["system"]]["kind"] == "language_model"
        ),
        "",
        f"Training: {losses[-1]['targets']} targets, last logged step {losses[-1]['step']} after "
        f"{losses[-1]['seconds']:.0f} s; validation NLL {'; '.join(valid)}.",
        "",
    ]
    given.out.write_text("\n".join(lines), "utf-8")


if __name__ == "__main__":
    main()
