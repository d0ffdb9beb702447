"""What a server counts, in the text format of Prometheus. Knows no HTTP."""

import threading
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128)


@dataclass
class Histogram:
    """How many observed values were at most each bound, their sum and number."""

    bounds: Sequence[float]
    counts: list[int] = field(default_factory=list)
    total: float = 0.0
    number: int = 0

    def __post_init__(self) -> None:
        self.counts = [0] * len(self.bounds)

    def observe(self, value: float) -> None:
        """Count a value."""
        self.total += value
        self.number += 1
        for place, bound in enumerate(self.bounds):
            self.counts[place] += value <= bound

    def lines(self, name: str) -> list[str]:
        """The histogram as Prometheus reads it."""
        said = [
            f'{name}_bucket{{le="{bound:g}"}} {count}'
            for bound, count in zip(self.bounds, self.counts, strict=True)
        ]
        said.append(f'{name}_bucket{{le="+Inf"}} {self.number}')
        return [*said, f"{name}_sum {self.total:g}", f"{name}_count {self.number}"]


class Measures:
    """Requests by path and status, seconds of answers, sizes of batches, histories answered."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._requests: dict[tuple[str, int], int] = defaultdict(int)
        self._seconds, self._sizes = Histogram(SECONDS), Histogram(SIZES)

    def answered(self, path: str, status: int, seconds: float) -> None:
        """Count a request."""
        with self._lock:
            self._requests[path, status] += 1
            if path == "/recommend":
                self._seconds.observe(seconds)

    def batch(self, size: int) -> None:
        """Count a batch of so many histories."""
        with self._lock:
            self._sizes.observe(size)

    def text(self, waiting: int) -> str:
        """All of it; `waiting`: histories that wait now."""
        with self._lock:
            requests = [
                f'llmrec_requests_total{{path="{path}",status="{status}"}} {count}'
                for (path, status), count in sorted(self._requests.items())
            ]
            return "\n".join(
                [
                    "# TYPE llmrec_requests_total counter",
                    *requests,
                    "# TYPE llmrec_recommend_seconds histogram",
                    *self._seconds.lines("llmrec_recommend_seconds"),
                    "# TYPE llmrec_batch_histories histogram",
                    *self._sizes.lines("llmrec_batch_histories"),
                    "# TYPE llmrec_waiting_histories gauge",
                    f"llmrec_waiting_histories {waiting}",
                    "",
                ]
            )
