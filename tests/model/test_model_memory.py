"""Memory that runs out, injected: a step is cut into smaller pieces and learns the same; prompts
are answered in halves and answered the same."""

import random

import numpy as np
import pytest
import torch

from llmrec.errors import LlmrecError
from llmrec.model import memory
from llmrec.model.losses import ListwiseLoss, Loss
from llmrec.model.memory import Halves, ran_out
from llmrec.model.softmax import MaskedSoftmax
from tests.model.test_model_trainer import MSL, best, logged, trainer_of  # noqa: F401

OUT = (
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory"),
    MemoryError(),
)


@pytest.fixture
def small_memory(monkeypatch):
    """A function that lets memory run out for more than so many rows; returns how many were read.

    It runs out as late as it can: with gradients of this very batch already there.
    """

    def run_out(most, error=OUT[0]):
        real, seen = MaskedSoftmax.branch_log_probabilities, []

        def reading(self, model, batch):
            seen.append(len(batch["input_ids"]))
            values = real(self, model, batch)
            if seen[-1] > most:
                if values.requires_grad:
                    values.sum().backward()
                raise error
            return values

        monkeypatch.setattr(MaskedSoftmax, "branch_log_probabilities", reading)
        return seen

    return run_out


@pytest.mark.parametrize(
    ("loss", "error", "most"),
    [
        (Loss(MSL), OUT[0], 2),
        (Loss(MSL), OUT[1], 1),
        (ListwiseLoss(MSL, tau=2.0), OUT[2], 1),
        (ListwiseLoss(MSL, tau=2.0), OUT[0], 2),
    ],
    ids=["msl-2", "msl-1", "listwise-1", "listwise-2"],
)
def test_a_step_is_cut_and_learns_the_same(trainer_of, small_memory, loss, error, most):  # noqa: F811
    whole = trainer_of("whole", loss)
    whole.go(None)
    cut = trainer_of("cut", loss)
    seen = small_memory(most, error)
    assert cut.go(None) == 6
    assert cut.pieces == 4 // most
    assert max(seen[-6:]) <= most
    losses = [[line["loss"] for line in logged(t, "loss")] for t in (whole, cut)]
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-4)
    assert logged(cut, "losses")[0]["losses"]["real"] == pytest.approx(
        logged(whole, "losses")[0]["losses"]["real"], rel=1e-4
    )
    assert [x["targets"] for x in logged(cut, "targets")] == [
        x["targets"] for x in logged(whole, "targets")
    ]
    for name, value in best(cut).items():
        torch.testing.assert_close(value, best(whole)[name], rtol=0, atol=2e-4)


def test_in_the_middle_of_an_accumulated_step(trainer_of, small_memory):  # noqa: F811
    """Micro-batches of the step that were learned already are learned once."""
    whole = trainer_of("whole", size=2)
    whole.go(None)
    cut = trainer_of("cut", size=2)
    real, calls = MaskedSoftmax.branch_log_probabilities, []

    def once(self, model, batch):
        calls.append(None)
        if len(calls) == 4:  # the second micro-batch of the second step
            raise OUT[0]
        return real(self, model, batch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MaskedSoftmax, "branch_log_probabilities", once)
        cut.go(None)
    assert cut.pieces == 2
    losses = [[line["loss"] for line in logged(t, "loss")] for t in (whole, cut)]
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-4)
    for name, value in best(cut).items():
        torch.testing.assert_close(value, best(whole)[name], rtol=0, atol=2e-4)


def test_one_row_that_is_too_large_is_told(trainer_of, small_memory):  # noqa: F811
    small_memory(0)
    with pytest.raises(LlmrecError, match=r"step 1 with one training row.*prompt\.max_tokens"):
        trainer_of().go(None)


def test_other_errors_are_no_lack_of_memory(trainer_of, small_memory):  # noqa: F811
    small_memory(0, RuntimeError("shape mismatch"))
    with pytest.raises(RuntimeError, match="shape"):
        trainer_of().go(None)
    assert not ran_out(ValueError("DefaultCPUAllocator: "))


def test_batches_are_answered_in_halves_and_no_larger_ones_again():
    asked, halves = [], Halves()

    def ask(batch):
        asked.append(len(batch))
        if len(batch) > 3:
            raise OUT[1]
        return [int(i) * 10 for i in batch]

    for batch in (np.arange(13), np.arange(13, 20)):
        assert halves.answer(batch, ask) == [10 * i for i in batch]
    assert asked == [13, 6, 3, 3, 3, 3, 1, 3, 3, 1]
    with pytest.raises(MemoryError):
        Halves().answer(np.arange(2), lambda _: (_ for _ in ()).throw(MemoryError()))


@pytest.mark.parametrize(
    "seed", [*range(2), *(pytest.param(s, marks=pytest.mark.long) for s in range(2, 20))]
)
def test_memory_that_runs_out_once_somewhere(trainer_of, seed, monkeypatch):  # noqa: F811
    """At a random reading of a random step, forward or behind the backward pass."""
    rng = random.Random(seed)
    size, loss = rng.choice([2, 4]), rng.choice([Loss(MSL), ListwiseLoss(MSL, tau=2.0)])
    at, error, late = rng.randrange(6 * 4 // size), rng.choice(OUT), rng.random() < 0.5
    whole = trainer_of("whole", loss, size=size)
    whole.go(None)
    cut, calls, real = (
        trainer_of("cut", loss, size=size),
        [],
        MaskedSoftmax.branch_log_probabilities,
    )

    def reading(self, model, batch):
        calls.append(len(batch["input_ids"]))
        values = None if not late else real(self, model, batch)
        if len(calls) == at + 1:
            if values is not None and values.requires_grad:
                values.sum().backward()
            raise error
        return real(self, model, batch) if values is None else values

    monkeypatch.setattr(MaskedSoftmax, "branch_log_probabilities", reading)
    assert cut.go(None) == 6
    assert cut.pieces == 2
    assert max(calls[at + 1 :]) == size // 2
    losses = [[line["loss"] for line in logged(t, "loss")] for t in (whole, cut)]
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-4)
    targets = [[line["targets"] for line in logged(t, "targets")] for t in (whole, cut)]
    assert targets[0] == targets[1]
    for name, value in best(cut).items():
        torch.testing.assert_close(value, best(whole)[name], rtol=0, atol=2e-4)


def test_memory_is_the_machines_or_its_containers(monkeypatch, tmp_path):
    cpu, limit = torch.device("cpu"), tmp_path / "memory.max"
    monkeypatch.setattr(memory, "_CGROUP", limit)
    whole = memory.memory_of(cpu)
    assert whole > 2**28
    limit.write_text("max\n")
    assert memory.memory_of(cpu) == whole
    limit.write_text("1048576\n")
    assert memory.memory_of(cpu) == 2**20
    assert memory.memory_of(torch.device("meta")) == float("inf")
