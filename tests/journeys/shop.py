"""A shop's log as shops have it: events of several kinds in part files, columns of their own names,
titles with entities, of one name or none, bad rows, doubled rows, people who buy the same again.

What somebody chooses next depends on what they chose last: items stand in groups, and most people
walk on within one. Every line is made from a seed.
"""

import gzip
import json
import random
from pathlib import Path

USERS, ITEMS, GROUPS = 5000, 800, 40
KINDS = ["Tee", "Coffee", "Kettle", "Lamp", "Mug", "Rug", "Chair", "Desk", "Bag", "Hat"]
LOOKS = ["red", "blue", "black", "white"]
START = 1_700_000_000  # seconds


def titles() -> list[str]:
    """One for each item: some with an entity, of one name with others, or none."""
    names = [
        f"{LOOKS[(n // 10) % 4]} {KINDS[n % 10]} &amp; Co no {n // GROUPS} {n % GROUPS}"
        for n in range(ITEMS)
    ]
    for n in range(0, ITEMS, 10):
        names[n] = "Gift card"
    for n in range(3, ITEMS, 16):
        names[n] = ""
    return names


def visits(users: int = USERS) -> list[tuple[str, int, int, str]]:
    """(user, item, seconds, kind of event), in no order."""
    rng, found = random.Random(11), []
    for user in range(users):
        group, at = rng.randrange(GROUPS), START + rng.randrange(10**6)
        item = rng.randrange(ITEMS // GROUPS)
        for _ in range(rng.randint(4, 12)):
            if rng.random() < 0.1:
                group = rng.randrange(GROUPS)
            item = (item + rng.choice([0, 1, 1, 2, 3])) % (ITEMS // GROUPS)
            at += rng.randint(30, 90_000)
            chosen = group * (ITEMS // GROUPS) + item
            found.append((f"kunde-{user}", chosen, at, rng.choice(["kauf", "kauf", "korb"])))
            found += [(f"kunde-{user}", rng.randrange(ITEMS), at - 9, "sicht")] * rng.randint(0, 2)
    rng.shuffle(found)
    return found


def write_shop(folder: Path) -> None:
    """`folder` with part-0000.csv to part-0003.csv and produkte.jsonl."""
    folder.mkdir(parents=True)
    rows, names = visits(), titles()
    rows += rows[:500]  # written twice
    size = -(-len(rows) // 4)
    for part in range(4):
        lines = ["zeit;kunde;ereignis;artikel"]
        lines += [
            f"{when};{user};{kind};A-{item:04d}"
            for user, item, when, kind in rows[part * size : (part + 1) * size]
        ]
        lines[100:100] = ["gestern;kunde-1;kauf;A-0001", f"{START};;kauf;A-0002"] * (part == 2)
        (folder / f"part-{part:04d}.csv").write_text("\n".join(lines) + "\n", "utf-8")
    with (folder / "produkte.jsonl").open("w", encoding="utf-8") as stream:
        for number, name in enumerate(names):
            line = {"artikel": f"A-{number:04d}", "name": name, "marke": f"brand {number % 7}"}
            stream.write(json.dumps(line) + "\n")


def write_amazon(folder: Path, category: str) -> None:
    """The same people as Amazon Reviews 2023 would have them: what they bought, rated."""
    folder.mkdir(parents=True)
    rng = random.Random(3)
    with gzip.open(folder / f"{category}.jsonl.gz", "wt", encoding="utf-8") as stream:
        for user, item, when, kind in visits():
            if kind == "kauf":
                review = {
                    "rating": float(rng.randint(1, 5)), "title": "Great", "text": "A text.",
                    "parent_asin": f"B{item:09d}", "user_id": user, "timestamp": when * 1000,
                }  # fmt: skip
                stream.write(json.dumps(review) + "\n")
    with gzip.open(folder / f"meta_{category}.jsonl.gz", "wt", encoding="utf-8") as stream:
        for number, name in enumerate(titles()):
            about = {"parent_asin": f"B{number:09d}", "title": name, "store": f"s{number % 9}"}
            stream.write(json.dumps(about) + "\n")
