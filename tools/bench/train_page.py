"""The page of the training benches: their parts, what each says of itself, and the tables."""

from decode import command
from figures import table
from train_sides import AT_ONCE

PARTS = {
    "rows": "titles targets row_tokens title_tokens tree padded ratio goal limit repeats",
    "pairs": "peer pairs prompt_tokens title_tokens tree padded ratio goal limit repeats",
    "msl": "rows targets_per_row head_positions msl sft ratio goal repeats",
    "head": "rows row_tokens head_positions tokens vocabulary titles full ratio goal repeats",
    "sets": "rejected prompt_tokens title_tokens tree padded ratio goal limit repeats",
    "processes": "rows_a_step row_tokens one two share goal mb_reduced mb_gradients",
    "padding": "shape batch rows row_tokens waste waste_unordered most_tokens",
}
SECTIONS = {
    "rows": (
        "All targets of a user in one row",
        "Targets per second. Padded: a row for each "
        f"target with the history before it, {AT_ONCE} rows of like length at once, logits at "
        "the title's positions only.",
    ),
    "pairs": (
        "SOFT pairs",
        "Pairs per second. The peers read two rows for each pair, padded, with "
        "the head at completion positions only: TRL's own SFTTrainer on the doubled data, "
        "and the same step restated here.",
    ),
    "msl": (
        "The softmax over continuations",
        "Seconds of a step on the same rows; ratio: "
        "cross-entropy over msl. Head positions: of msl, of cross-entropy, in the first row.",
    ),
    "head": (
        "The head for the tokens of titles",
        "Seconds of a step of msl on the same inline rows; tokens: that occur in a title; ratio: "
        "the full head over these alone.",
    ),
    "sets": (
        "A chosen title and rejected ones",
        "Prompts per second. Padded: a row for each "
        "title; the loss is a logistic one of their log-probabilities.",
    ),
    "processes": (
        "Two processes on two cores",
        "Rows per second of the trainer with the same "
        "optimiser steps, one thread a process; share: of twice the speed. Megabytes: "
        "reduced over processes in a step, and held by the gradients of the adapter.",
    ),
    "padding": (
        "Padding",
        "Share of an epoch's tokens that are padding when rows of like length "
        "share a step, and in a drawn order; the most tokens of a micro-batch.",
    ),
}


def page(figures: list[dict]) -> str:
    """The figures as Markdown."""
    on = figures[0]
    lines = [
        "# Training steps that read a prompt once\n\n"
        f"`{command()}`: {on['model']}, float32, LoRA r 8 on all linear layers, "
        f"{on['threads']} CPU threads ({on['machine']}), torch {on['torch']}, transformers "
        f"{on['transformers']}, peft {on['peft']}; MovieLens-100K. Forward and backward. Rates are "
        "medians of repeats that alternate both sides, ratios the medians of theirs; limits are "
        "ratios of multiplications by weights in the shapes that ran, attention left out. Losses "
        "and gradients of both sides are equal within 1e-5, TRL's within 2e-4.\n"
    ]
    for part, (title, note) in SECTIONS.items():
        some = [f for f in figures if f["part"] == part]
        if some:
            ranged = [
                {"ratio_range": [f["ratio"], f["ratio"]], **f, "goal": f.get("goal") or "-"}
                for f in some
            ]
            lines += [f"## {title}\n\n{note}\n", *table(ranged, PARTS[part])]
    return "\n".join(lines)
