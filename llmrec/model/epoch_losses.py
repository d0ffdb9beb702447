"""The losses of an epoch by kind of target, per title and per token. Knows no trainer."""

from typing import Any

import torch
from torch import Tensor

KINDS = ("real", "self")  # what the kinds of targets are called in the log


class EpochLosses:
    """`sums` (3, kinds): summed losses in nats, titles and tokens since the epoch began."""

    def __init__(self) -> None:
        self.sums = torch.zeros(3, len(KINDS), dtype=torch.float64)

    def add(self, values: Tensor, batch: dict[str, Any]) -> None:
        """Count a batch: `values` (G,) are the log-probabilities of its branches, of which those
        `counted` (G,) are learned, each of as many tokens as `lengths` (G,) says.

        Waits for no GPU.
        """
        counted = batch["counted"]
        losses = torch.where(counted, -values.detach(), 0.0).double()
        self.sums = self.sums.to(losses.device)
        found = [losses, counted.double(), (counted * batch["lengths"]).double()]
        kinds = batch["kinds"].clamp(max=len(KINDS) - 1)  # others are never counted
        self.sums.index_add_(1, kinds, torch.stack(found))

    def restore(self, sums: list[list[float]]) -> None:
        """Go on from sums that were saved; older ones do not count tokens."""
        known = torch.tensor(sums, dtype=torch.float64)
        self.sums[: len(known)] = known.to(self.sums.device)


def means(sums: Tensor) -> dict[str, dict[str, float | None]]:
    """Mean losses per title (`losses`) and per token of it; None for a kind that was not learned.

    A title's loss is the sum over its tokens, so the two tell different stories of kinds whose
    titles are not equally long.
    """
    summed, titles, tokens = sums

    def per(counts: Tensor) -> dict[str, float | None]:
        return {
            name: float(loss / count) if count else None
            for name, loss, count in zip(KINDS, summed, counts, strict=True)
        }

    return {"losses": per(titles), "losses_per_token": per(tokens)}
