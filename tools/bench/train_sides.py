"""Both sides of a training step, one tree a row and padded rows, and the ratio of their times."""

import statistics
import sys
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch
from soft import cost

from llmrec.model.forward import head_at
from llmrec.model.softmax import Softmax, branch_sums, log_probabilities
from llmrec.text.tree import Segment, TokenTree

AT_ONCE = 8  # padded rows that are read together; one tree holds as many tokens
Path_ = tuple[np.ndarray, np.ndarray]  # a prompt, and the completion to learn behind it


def tree(prompt: np.ndarray, completions: Sequence[np.ndarray]) -> TokenTree:
    """The prompt, and every completion behind it."""
    branches = (Segment(ids, 0, number) for number, ids in enumerate(completions))
    return TokenTree((Segment(prompt), *branches))


def mean_loss(values: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of a target; for values (T,) of the targets' log-probabilities."""
    return -values.mean()


def ours(
    model, softmax: Softmax, rows: Sequence[TokenTree], loss_of: Callable = mean_loss
) -> float:
    """Forward and backward over one row a tree, laid out anew; the loss."""
    batch = softmax.prepare([row.flatten() for row in rows])
    loss = loss_of(softmax.branch_log_probabilities(model, batch))
    loss.backward()
    return float(loss.detach())


def theirs(model, paths: Sequence[Path_], loss_of: Callable = mean_loss) -> float:
    """Forward and backward over right-padded rows, all in one batch; the loss."""
    ids = np.zeros((len(paths), max(len(p) + len(c) for p, c in paths)), np.int64)
    seen, at, labels, owner = np.zeros_like(ids), [], [], []
    for row, (prompt, completion) in enumerate(paths):
        size = len(prompt) + len(completion)
        ids[row, :size], seen[row, :size] = np.concatenate([prompt, completion]), 1
        at.append(row * ids.shape[1] + np.arange(len(prompt) - 1, size - 1))
        labels.append(completion.astype(np.int64))
        owner.append(np.full(len(completion), row))
    at, labels, owner = (torch.from_numpy(np.concatenate(x)) for x in (at, labels, owner))
    with head_at(model, at):
        out = model(input_ids=torch.from_numpy(ids), attention_mask=torch.from_numpy(seen))
    values = branch_sums(log_probabilities(out.logits[0], labels), owner, len(paths))
    loss = loss_of(values)
    loss.backward()
    return float(loss.detach())


def theirs_by_length(model, paths: Sequence[Path_]) -> float:
    """The same in batches of rows of like length; the mean loss of all."""
    parts = batches(paths)
    return sum(theirs(model, some, lambda v: -v.sum() / len(paths)) for some in parts)


def batches(paths: Sequence[Path_]) -> list[list[Path_]]:
    """Rows of like length together, AT_ONCE of them."""
    ordered = sorted(paths, key=lambda path: -sum(map(len, path)))
    return [ordered[i : i + AT_ONCE] for i in range(0, len(ordered), AT_ONCE)]


def padded_tokens(parts: Sequence[Sequence[Path_]]) -> int:
    """How many tokens padded batches hold."""
    return sum(len(some) * max(sum(map(len, path)) for path in some) for some in parts)


def compared(
    model, mine: Callable, peer: Callable, repeats: int, close: float | None = 1e-5
) -> dict:
    """Seconds of both sides, and the median and range of their ratio, over alternating repeats.

    `close`: how near to each other loss and gradients of the first repeat must be; None: anyhow.
    """
    seconds, found = [], []
    for number in range(repeats):
        spent = []
        for run in (mine, peer):
            model.zero_grad()
            begun = time.perf_counter()
            loss = run()
            spent.append(time.perf_counter() - begun)
            if number == 0:
                grads = [p.grad.flatten() for p in model.parameters() if p.requires_grad]
                found.append((loss, torch.cat(grads)))
        if number == 0 and close:
            (loss, gradient), (same, gradients) = found
            apart = abs(loss / same - 1)
            gradients_apart = float((gradient - gradients).abs().max() / gradients.abs().max())
            if not (apart <= close and gradients_apart <= close):
                sys.exit(
                    f"losses {loss} and {same}, gradients {gradients_apart:.1e} of the "
                    "largest apart; nothing is timed"
                )
        seconds.append(spent)
    ratios = [t / o for o, t in seconds]
    told = (
        {"loss_apart": float(f"{apart:.1e}"), "gradients_apart": float(f"{gradients_apart:.1e}")}
        if close
        else {}
    )
    return {
        "seconds": [round(statistics.median(s), 3) for s in zip(*seconds, strict=True)],
        "ratio": round(statistics.median(ratios), 2),
        "ratio_range": [round(min(ratios), 2), round(max(ratios), 2)],
        "repeats": repeats,
        **told,
    }


def rates(found: dict, count: int) -> dict:
    """How many a second each side did."""
    mine, peer = found["seconds"]
    return {"tree": round(count / mine, 3), "padded": round(count / peer, 3)}


def limit_of(model, rows: Sequence[TokenTree], parts: Sequence[Sequence[Path_]]) -> float:
    """The ratio of multiplications by weights; attention is left out."""
    flats = [row.flatten() for row in rows]
    learned = sum(len(c) for some in parts for _, c in some)
    mine = len(flats) * max(len(flat.input_ids) for flat in flats)
    at = sum(len(flat.labels) for flat in flats)
    return round(cost(model, padded_tokens(parts), learned) / cost(model, mine, at), 2)


def paths_of(row: TokenTree) -> list[Path_]:
    """What each predicted segment of a tree reads, and itself."""
    found = []
    for segment in row.segments:
        if segment.target >= 0:
            before, at = [], segment.parent
            while at >= 0:
                before.insert(0, row.segments[at].ids)
                at = row.segments[at].parent
            found.append((np.concatenate(before), segment.ids))
    return found
