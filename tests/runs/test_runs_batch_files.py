"""Answers are kept by the batch; what was interrupted goes on, in the same batches or in others."""

import numpy as np
import pytest

from llmrec.data.batching import batches
from llmrec.runs.batch_files import answer_in_parts, collected, discard

LENGTHS = np.random.default_rng(0).integers(1, 40, 23).tolist()


def answering(asked, stop=None):
    """Answers an index with its square, and breaks off before batch number `stop`."""

    def answer(batch):
        if len(asked) == stop:
            raise KeyboardInterrupt
        asked.append(batch.tolist())
        return [i * i for i in batch.tolist()]

    return lambda: answer


@pytest.mark.parametrize("size", [4, 3, 23])
def test_an_interrupted_list_goes_on_with_the_same_batches_or_others(tmp_path, size):
    parts, before, after = tmp_path / "parts", [], []
    with pytest.raises(KeyboardInterrupt):
        answer_in_parts(parts, batches(LENGTHS, 4), answering(before, stop=3), "test")
    answer_in_parts(parts, batches(LENGTHS, size), answering(after), "test")
    answers, seconds = collected(parts)
    assert answers == [i * i for i in range(23)]
    assert seconds >= 0
    if size == 4:
        assert len(before + after) == 6, "nothing is answered twice"
    discard(parts)
    assert not parts.exists()


def test_nothing_is_begun_where_all_is_answered(tmp_path):
    plan = batches(LENGTHS, 5)
    answer_in_parts(tmp_path / "parts", plan, answering([]), "test")
    answer_in_parts(tmp_path / "parts", plan, lambda: pytest.fail("begun"), "test")


def test_a_thousand_batches_are_one_file(tmp_path):
    plan = batches([1] * 1000, 1)
    answer_in_parts(tmp_path / "parts", plan, answering([]), "test")
    assert len(list((tmp_path / "parts").iterdir())) == 1
    assert collected(tmp_path / "parts")[0] == [i * i for i in range(1000)]


@pytest.mark.parametrize("damage", ["torn", "zeros", "changed"])
def test_what_a_lost_machine_left_half_written_is_answered_again(tmp_path, damage):
    parts, before, after = tmp_path / "parts", [], []
    plan = batches(LENGTHS, 4)
    answer_in_parts(parts, plan, answering(before), "test")
    (path,) = parts.iterdir()
    whole = path.read_bytes()
    last = whole.rstrip(b"\n").rindex(b"\n") + 1
    path.write_bytes(
        {
            "torn": whole[:-5],
            "zeros": whole[:last] + bytes(len(whole) - last),
            "changed": whole[:-3] + b"1" + whole[-2:],
        }[damage]
    )
    answer_in_parts(parts, plan, answering(after), "test")
    assert after == before[-1:]
    assert collected(parts)[0] == [i * i for i in range(23)]
