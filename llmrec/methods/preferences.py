"""Learning to prefer: the target to other candidates, by what the model has gained on a reference.

The reference is the model that training starts from. Its log-probabilities of every branch are read
once, before the first step, and kept in the cache by content: a training that is interrupted, and
another that starts from the same weights with the same rows, do not read them again. Sources: DPO
(arXiv 2305.18290), S-DPO (arXiv 2406.09215).
"""

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import nn

from llmrec.data.batching import batches
from llmrec.inference.engine import TREE_TOKENS
from llmrec.methods.listwise import candidate_rows
from llmrec.methods.method import Job, Method, Trees, alone
from llmrec.methods.plain import importance_of, softmax_of
from llmrec.model.losses import DPOLoss, KeptValues, Loss, SDPOLoss, WholeStepLoss
from llmrec.model.softmax import Softmax
from llmrec.runs import cached
from llmrec.runs.processes import gathered, processes, share_of
from llmrec.text.tree import TokenTree

log = logging.getLogger("llmrec")


def with_reference(job: Job, rows: Trees, model: nn.Module, loss: Loss) -> Loss:
    """The loss beside the model as training begins, read now unless it is kept.

    Every process calls this.
    """
    assert isinstance(loss, WholeStepLoss)  # noqa: S101  of the methods below
    artifact = cached.reference(job.recipe, _hash_of(rows))
    with processes().main_process_first():
        standing = artifact.facts_or_none() is not None
    processes().wait_for_everyone()
    if not standing:
        log.info("train: reading %d rows with the model that training starts from", len(rows))
        values = read_values(model, loss.softmax, rows)
        if processes().is_main_process:
            staged = artifact.staged()
            with staged.open("wb") as stream:
                np.save(stream, values, allow_pickle=False)
            artifact.seal(staged)
        processes().wait_for_everyone()
    kept = np.load(artifact.place, allow_pickle=False)
    return replace(loss, reference=KeptValues(torch.from_numpy(kept)))


def read_values(model: nn.Module, softmax: Softmax, rows: Trees) -> np.ndarray:
    """(R, n) float32 log-probabilities of the n branches of each of R rows, as the model is now.

    Processes share the rows, and all get all values.
    """
    device = next(model.parameters()).device
    plan = batches([len(row) for row in rows], tokens=TREE_TOKENS)
    found: dict[int, list[float]] = {}
    for number in share_of(len(plan)):
        some = [rows[i].flatten() for i in plan[number].tolist()]
        prepared = {name: x.to(device) for name, x in softmax.prepare(some).items()}
        with torch.no_grad():
            values = softmax.branch_log_probabilities(model, prepared)
        lists = values.float().cpu().reshape(len(some), -1).tolist()
        found |= zip(plan[number].tolist(), lists, strict=True)
    found = gathered(found)
    return np.array([found[i] for i in range(len(rows))], np.float32)


def _hash_of(rows: Sequence[TokenTree]) -> str:
    """SHA-256 over all rows: their tokens, what hangs on what, and which items the branches are."""
    hashed = hashlib.sha256()
    for row in rows:
        for segment in row.segments:
            place = (len(segment.ids), segment.parent, segment.target)
            hashed.update(f"{place}".encode() + np.asarray(segment.ids, np.int32).tobytes())
        hashed.update(b"\n")
    return hashed.hexdigest()


def _dpo_loss(job: Job) -> Loss:
    """DPO; the reference comes with the model."""
    softmax, asked = softmax_of(job.recipe, job.encoder), job.recipe.objective.dpo
    return DPOLoss(softmax, beta=asked.beta, importance=importance_of(job))


def _sdpo_loss(job: Job) -> Loss:
    """S-DPO; the reference comes with the model."""
    softmax, asked = softmax_of(job.recipe, job.encoder), job.recipe.objective.sdpo
    return SDPOLoss(softmax, beta=asked.beta, importance=importance_of(job))


DPO = Method(
    lambda _: {"train": alone},
    lambda job: candidate_rows(job, job.recipe.objective.dpo.negatives),
    _dpo_loss,
    compared=(1,),
    begin=with_reference,
)
SDPO = Method(
    lambda _: {"train": alone},
    lambda job: candidate_rows(job, job.recipe.objective.sdpo.negatives),
    _sdpo_loss,
    compared=(1,),
    begin=with_reference,
)
