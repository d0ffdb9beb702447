"""Shares: everything is done, by equally many steps of each process."""

from types import SimpleNamespace

import pytest

from llmrec.runs import processes as group


@pytest.mark.parametrize(("count", "of"), [(7, 1), (7, 2), (8, 4), (3, 5), (1, 3), (0, 2)])
def test_processes_do_equally_many_things_and_all_of_them(monkeypatch, count, of):
    shares = []
    for rank in range(of):
        state = SimpleNamespace(num_processes=of, process_index=rank)
        monkeypatch.setattr(group, "processes", lambda state=state: state)
        shares.append(group.share_of(count))
    assert {len(share) for share in shares} == {-(-count // of)}
    assert {number for share in shares for number in share} == set(range(count))
    if count > of:
        assert [share[0] for share in shares] == list(range(of)), "neighbours go apart"


def test_what_one_process_found_is_all_there_is():
    assert group.gathered({2: "c", 0: "a"}) == {0: "a", 2: "c"}
