"""The Markdown page of the GPU figures. Knows nothing but their keys."""

SHOWN = (
    "device",
    "dtype",
    "prompt_tokens",
    "title_tokens",
    "items",
    "python",
    "torch",
    "transformers",
)
TABLES = {  # by the beginning of a figure's name: heading and columns
    "decode": (
        "Decoding, users per second",
        "model beams softmax hugging_face llmrec ratio graphs graphs_ratio goal "
        "sharing_limit roofline roofline_share batch peer_batch same_lists graphs_same_lists "
        "same_items graphs_same_items peer_same_items",
    ),
    "own answers": (
        "Own answers, prompts per second",
        "model beams softmax hugging_face llmrec ratio graphs graphs_ratio goal "
        "sharing_limit roofline_share same_items graphs_same_items",
    ),
    "best-first": (
        "Best-first search over the allowed tokens, users per second; ratio: to beams",
        "model beams best_first llmrec_beams ratio graphs hugging_face "
        "ratio_to_hugging_face graphs_ratio goal roofline_share rows_behind "
        "passes_behind found_by_beams graphs_same_lists",
    ),
    "memory": (
        "Memory of decoding above the weights, MiB a user; limit: of keys and values",
        "model beams hugging_face llmrec ratio limit",
    ),
    "pairs": (
        "Training on SOFT pairs, pairs per second; peak memory above the weights",
        "model pairs hugging_face llmrec ratio goal limit tokens_per_s peak_share "
        "hugging_face_gib llmrec_gib loss_apart",
    ),
}


def page(figures: list[dict], arguments: list[str]) -> str:
    """The figures as Markdown."""
    done = [f for f in figures if not {"failed", "skipped"} & f.keys()]
    on = next((f for f in done if "prompt_tokens" in f), {})
    lines = [
        "# On a GPU against Hugging Face\n",
        f"`python {' '.join(['tools/bench/gpu.py', *arguments])}`: "
        + ", ".join(f"{key.replace('_', ' ')} {on[key]}" for key in SHOWN if key in on)
        + ". Random weights, prompts and titles (`tools/bench/gpu_sides.py` draws them). Rates are "
        "medians of alternating repeats, ratios the medians of theirs; the peer is `generate` one "
        "user at a time or `peer batch` at a time, whichever is faster. Sharing limit: what "
        "reading each prompt once can gain, both sides asked alike. Roofline: users per second "
        "that 790 TFLOP/s allow. Same lists, same items: with the peer one user at a time, in this "
        "dtype; the peer's own: in batches against one at a time. Graphs: llmrec with "
        "decode.cuda_graphs, in its own best "
        "batch; their ratio and lists are to the same peer, and in best-first search the lists to "
        "those without graphs.\n",
    ]
    for name in ("equal searches", "equal graphs", "equal gradients"):
        equal = next((f.get("equal") for f in figures if f["figure"] == name), None)
        verdict = {True: "passed", False: "**failed**", None: "did not run"}[equal]
        lines.append(f"- {name}, in float32 with a small model: {verdict}")
    for f in figures:
        if f not in done:
            why = f.get("failed") or f["skipped"]
            lines.append(f"- {f['figure']}: not measured ({why})")
        elif "graphs_failed" in f:
            lines.append(f"- {f['figure']}: graphs not measured ({f['graphs_failed']})")
    for kind, (heading, keys) in TABLES.items():
        mine = [f for f in done if f["figure"].startswith(kind)]
        if mine:
            lines += ["", f"## {heading}", "", *table(mine, keys.split())]
    return "\n".join([*lines, ""])


def table(figures: list[dict], keys: list[str]) -> list[str]:
    """A line for each figure, a column for each key."""
    lines = [[key.replace("_", " ") for key in keys], ["---"] * len(keys)]
    for f in figures:
        cells = {**f, "model": f["model"].split(" ")[0]}
        if "ratio_range" in f:
            cells["ratio"] = "{} ({} to {})".format(f["ratio"], *f["ratio_range"])
        lines.append(["" if cells[key] is None else str(cells[key]) for key in keys])
    return [f"| {' | '.join(line)} |" for line in lines]
