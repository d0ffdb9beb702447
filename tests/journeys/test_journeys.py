"""Four people who decide whether this is of use to them, each on a way of their own."""

import pytest
from journeys import engineer, metrics, server, student
from journeys.walk import Journey

PEOPLE = {"engineer": engineer, "student": student, "server": server, "metrics": metrics}


@pytest.mark.parametrize("who", PEOPLE)
def test_a_journey(who, tmp_path, tiny_base, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    go = Journey(who, tmp_path, tiny_base)
    try:
        PEOPLE[who].journey(go)
    finally:
        with capsys.disabled():
            print(f"\n{go.told()}")
    assert len(go.steps) >= 3
