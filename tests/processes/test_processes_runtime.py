"""How processes meet: queues, waits without a limit, one that decides for all, failures told."""

import json
from pathlib import Path

import pytest


@pytest.fixture
def done(group, tmp_path):
    """A function that has ranks do something of `ranks.py`; what each of them said."""

    def run(world, name, *arguments):
        out = tmp_path / name
        group.done(world, "ddp", ["do", name, out, *arguments])
        return [json.loads(Path(f"{out}-{rank}.json").read_text("utf-8")) for rank in range(world)]

    return run


def test_a_queue_gives_every_number_to_one_process(done):
    said = done(3, "takes_from_a_queue", 12)
    for queue in zip(*said, strict=True):
        assert sorted(number for mine in queue for number in mine) == list(range(12))
        assert len(queue[0]) < min(len(queue[1]), len(queue[2])), "who is slow does less"


def test_what_one_does_alone_may_take_longer_than_collectives_wait(done):
    said = done(2, "waits_longer_than_collectives")
    assert [found[0] for found in said] == [{"who": 0}] * 2
    assert said[1][1] > said[0][1], "the main process went first"


def test_all_fail_as_the_main_process_fails_and_one_tells_it(group, tmp_path):
    codes, said = group.launch(2, "ddp", ["do", "fails_in_the_main_process", tmp_path])
    assert codes[0] == 2
    assert codes[1] in (2, -9)  # it may have been ended before it heard
    assert "the recipe says what cannot be" in said[0]
    assert "the recipe says what cannot be" not in said[1]


def test_what_one_does_alone_asks_nobody(done):
    said = done(2, "is_alone_in_the_main_process")
    assert [found[0] for found in said] == [[[0, 1, 2], [0, 1], {"1": 2}]] * 2
    assert [found[1] for found in said] == [[0, 2], [1, 3]]


def test_hosts_that_share_no_folder_are_told_so(group, tmp_path):
    codes, said = group.launch(2, "ddp", ["do", "has_a_folder_of_its_own", tmp_path / "own"])
    assert all(code in (2, -9) for code in codes)
    told = "".join(said)
    assert "rank 1 on" in told
    assert "a folder that all hosts share" in told
