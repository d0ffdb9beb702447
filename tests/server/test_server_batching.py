"""The worker that answers requests together: what gathers, what is refused, what goes wrong."""

import threading

import pytest

from llmrec.server.batching import Batcher, Full
from llmrec.server.measures import Measures


class Gated:
    """Answers twice a number; the first batch waits for the gate."""

    def __init__(self):
        self.gate, self.begun, self.batches = threading.Event(), threading.Event(), []

    def __call__(self, key, asked):
        self.batches.append((key, list(asked)))
        self.begun.set()
        assert self.gate.wait(10)
        if key == "bad":
            raise ValueError("no")
        return [2 * one for one in asked]


@pytest.fixture
def gated():
    return Gated()


def test_what_comes_while_a_batch_is_computed_is_answered_together(gated):
    sizes = []
    batcher = Batcher(gated, most=4, waiting=100, sizes=sizes.append)
    first = batcher.submit("a", [1])
    gated.begun.wait(10)
    later = [
        batcher.submit(key, asked)
        for key, asked in [("a", [2, 3]), ("b", [4]), ("a", [5]), ("a", [6, 7]), ("a", [8])]
    ]
    assert batcher.waiting == 7
    gated.gate.set()
    assert first.result(10) == [2]
    assert [job.result(10) for job in later] == [[4, 6], [8], [10], [12, 14], [16]]
    # Of the key that came first, four at most and in their order; then the other key.
    assert gated.batches == [("a", [1]), ("a", [2, 3, 5, 8]), ("b", [4]), ("a", [6, 7])]
    assert sizes == [1, 4, 1, 2]
    batcher.close()


def test_a_request_larger_than_a_batch_is_answered_alone(gated):
    gated.gate.set()
    batcher = Batcher(gated, most=2, waiting=100)
    assert batcher.submit("a", [1, 2, 3]).result(10) == [2, 4, 6]
    batcher.close()


def test_too_much_waiting_is_refused_and_what_is_cancelled_is_not_answered(gated):
    batcher = Batcher(gated, most=4, waiting=3)
    batcher.submit("a", [1])
    gated.begun.wait(10)
    gone = batcher.submit("a", [2, 3])
    with pytest.raises(Full):
        batcher.submit("a", [4, 5])
    assert gone.cancel()
    kept = batcher.submit("a", [6])
    gated.gate.set()
    assert kept.result(10) == [12]
    assert gated.batches[1:] == [("a", [6])]
    batcher.close()
    with pytest.raises(Full):
        batcher.submit("a", [1])


def test_an_error_is_that_of_its_own_batch(gated):
    gated.gate.set()
    batcher = Batcher(gated, most=4, waiting=100)
    bad, good = batcher.submit("bad", [1]), batcher.submit("a", [1])
    with pytest.raises(ValueError, match="no"):
        bad.result(10)
    assert good.result(10) == [2]
    batcher.close()


def test_measures_are_what_prometheus_reads():
    measures = Measures()
    measures.answered("/recommend", 200, 0.02)
    measures.answered("/recommend", 503, 0.3)
    measures.answered("/health", 200, 9.0)
    measures.batch(3)
    lines = measures.text(waiting=7).splitlines()
    assert 'llmrec_requests_total{path="/recommend",status="503"} 1' in lines
    assert 'llmrec_recommend_seconds_bucket{le="0.01"} 0' in lines
    assert 'llmrec_recommend_seconds_bucket{le="0.025"} 1' in lines
    assert 'llmrec_recommend_seconds_bucket{le="+Inf"} 2' in lines
    assert "llmrec_recommend_seconds_sum 0.32" in lines
    assert 'llmrec_batch_histories_bucket{le="2"} 0' in lines
    assert 'llmrec_batch_histories_bucket{le="4"} 1' in lines
    assert "llmrec_waiting_histories 7" in lines
