"""One change in one file of a run, of any kind, under every verb: what is done with it is told, or
it changes nothing; never a traceback, and never another result without a word."""

import json
import random
import shutil

import pytest

from tests.long.conftest import rounds

pytestmark = pytest.mark.long
LEFT_OUT = {".lock", ".holder.json", "report.html"}
# Words of what is said where a file is found to be another than was written.
TOLD = ("damaged", "again", "left out", "was changed", "skipped", "differ", "building the trie")


def flipped(content, rng):
    changed = bytearray(content)
    changed[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def cut(content, rng):
    return content[: rng.randrange(len(content))]


def zeroed(content, rng):
    at = rng.randrange(len(content))
    return content[:at] + b"\0" * min(64, len(content) - at) + content[at + 64 :]


def lengthened(content, rng):
    at = rng.randrange(len(content) + 1)
    return content[:at] + rng.randbytes(rng.randrange(1, 40)) + content[at:]


def gone(content, rng):
    return None


KINDS = (flipped, flipped, flipped, cut, zeroed, lengthened, gone)


def verbs(root, out, histories):
    return {
        "evaluate": ["evaluate", root, "--json"],
        "report": ["report", root, "--out", out / "page.html"],
        "export": ["export", root, "--out", out / "export"],
        "recommend --histories": ["recommend", root, "--histories", histories, "--top-k", "3"],
        "compare": ["compare", f"{root}:markov", f"{root}:tuned", "--format", "json"],
        "check leakage": ["check", "leakage", root, "--json"],
        "recommend": ["recommend", root],
        "evaluate after": ["evaluate", root, "--json"],
        "train": ["train", root],
    }


def result(name, root, out, printed):
    """What a verb found, without what it tells of time and place."""
    if name == "report":
        page = out / "page.html"
        return page.read_bytes() if page.exists() else b""
    if name == "export":
        return {p.name: p.read_bytes() for p in sorted((out / "export").rglob("*.parquet"))}
    if name.startswith("evaluate"):
        said = json.loads(printed)
        return {key: said.get(key) for key in ("table", "comparisons", "gates")}
    return "" if name in ("recommend", "train") else printed


def test_200_mutations_under_every_verb(trained, forks, histories, tmp_path, capsys):
    _, folder = trained
    assert forks.run("-q", "run", folder.root)[0] == 0
    whole, run, out = tmp_path / "whole", folder.root, tmp_path / "out"
    shutil.move(run, whole)
    files = sorted(
        p.relative_to(whole) for p in whole.rglob("*") if p.is_file() and p.name not in LEFT_OUT
    )
    all_verbs, right = verbs(run, out, histories), {}

    def fresh():
        for place in (run, out):
            shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(whole, run)
        out.mkdir()

    fresh()
    for name, arguments in all_verbs.items():
        code, printed, errors = forks.run(*arguments)
        assert code == 0, errors
        right[name] = result(name, run, out, printed)
    rng, found, wrong = random.Random(5), {}, []
    for number in range(rounds(200)):
        path, kind = files[number % len(files)], rng.choice(KINDS)
        fresh()
        changed = kind((run / path).read_bytes(), rng)
        (run / path).unlink()
        if changed is not None:
            (run / path).write_bytes(changed)
        told_before = False
        for name, arguments in all_verbs.items():
            code, printed, errors = forks.run(*arguments)
            where = f"{number}: {path} {kind.__name__}, {name}"
            told = any(word in errors for word in TOLD)
            told_before |= told  # a verb that mended it says so once
            if "Traceback" in errors:
                wrong.append(f"{where}: traceback {errors[-700:]}")
            elif code != 0:
                said = "error: " in errors or (name == "check leakage" and printed)
                verdict = "refused" if said else "silent end"
                found[verdict] = found.get(verdict, 0) + 1
                if verdict != "refused":
                    wrong.append(f"{where}: exit {code} without a word")
                continue
            elif result(name, run, out, printed) == right[name]:
                found["told, same" if told else "same"] = (
                    found.get("told, same" if told else "same", 0) + 1
                )
            elif told or told_before:
                found["told, other"] = found.get("told, other", 0) + 1
            else:
                wrong.append(f"{where}: another result without a word; {errors[-300:]}")
    with capsys.disabled():
        print(f"\n{rounds(200)} mutations of {len(files)} files, {len(all_verbs)} verbs: {found}")
        print("\n".join(wrong))
    assert not wrong
