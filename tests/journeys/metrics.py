"""Somebody with a ranking of their own who wants honest metrics and nothing else: no run, no model,
no torch."""

import csv
from collections import Counter

from journeys.shop import visits
from journeys.walk import Journey

K = 10


def journey(go: Journey) -> None:
    """All of it."""
    chosen: dict[str, list[int]] = {}
    for user, item, _, kind in sorted(visits(1000), key=lambda row: row[2]):
        if kind != "sicht":
            chosen.setdefault(user, []).append(item)
    targets = {user: items[-1] for user, items in chosen.items()}
    counts = Counter(item for items in chosen.values() for item in items[:-1])
    popular = [item for item, _ in counts.most_common(K)]
    latest = {
        user: list(dict.fromkeys([*reversed(items[:-1]), *popular]))[:K]
        for user, items in chosen.items()
    }
    with (go.place / "targets.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([("user_id", "item_id"), *targets.items()])
    with (go.place / "popular.csv").open("w", newline="") as stream:
        rows = [(u, i, n) for u in targets for n, i in enumerate(popular, 1)]
        csv.writer(stream).writerows([("user_id", "item_id", "rank"), *rows])
    with (go.place / "latest.run").open("w") as stream:
        for user, items in latest.items():
            for n, item in enumerate(items, 1):
                stream.write(f"{user} Q0 {item} {n} {1 / n:.6f} mine\n")
    judged = ["--targets", go.place / "targets.csv", "--predictions"]
    both = [f"popular={go.place / 'popular.csv'}", f"latest={go.place / 'latest.run'}"]
    with go.step("evaluate two rankings, one as CSV, one as a TREC run"):
        found = go.numbers("evaluate", *judged, *both)
        table = found["table"]
    with go.step("the figures are those one works out by hand"):
        for system, lists in (("popular", dict.fromkeys(targets, popular)), ("latest", latest)):
            hits = sum(target in lists[user] for user, target in targets.items())
            cell = table["systems"][system][f"HR@{K}"]["all"]
            assert abs(cell["mean"] - hits / len(targets)) < 1e-12
            assert cell["low"] <= cell["mean"] <= cell["high"]
    with go.step("the same as text and for LaTeX, with a paired test"):
        said = go.llmrec("evaluate", *judged, *both)
        assert "latest stands above popular" in said
        assert "tabular" in go.llmrec("evaluate", *judged, *both, "--format", "latex")
