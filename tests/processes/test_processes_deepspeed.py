"""Training under DeepSpeed's ZeRO 2 and 3 on gloo; skipped where DeepSpeed is not installed."""

import pytest
from test_processes_matrix import assert_same_training, launched, succeeded  # noqa: F401

pytest.importorskip("deepspeed")


def test_two_processes_train_what_one_does(succeeded):  # noqa: F811
    alone = succeeded("train", "alone", 1, "ddp")
    assert_same_training(succeeded("train", "zero2", 2, "zero2"), alone)


def test_two_processes_with_weights_in_shards_train_what_one_does(succeeded):  # noqa: F811
    alone = succeeded("train", "alone", 1, "ddp")
    assert_same_training(succeeded("train", "zero3", 2, "zero3"), alone)
