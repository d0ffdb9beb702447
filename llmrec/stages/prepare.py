"""`llmrec prepare`: raw data in, `data/` of a run folder out, whole or not at all.

Reads a source, filters, splits, and writes items, interactions, the three files of examples and
`manifest.json`, which says what went in (hashes), by which rules, and what came out. Does nothing
where the manifest of an earlier run still holds. Knows no text and no model.
"""

import logging
import shutil
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from llmrec.data import sealed
from llmrec.data.candidates import draw_candidates, write_candidates
from llmrec.data.catalog import NUMBER_SUFFIX, UNTITLED, Catalog, duplicate_titles
from llmrec.data.files import require_space
from llmrec.data.filters import drawn_items, seeded_subset
from llmrec.data.records import Bools, Examples, Interactions
from llmrec.data.sources import RawData, described
from llmrec.data.splits import (
    Split,
    by_user,
    global_time,
    leave_one_out,
    order,
    sliding_window,
    with_train_users,
)
from llmrec.errors import DataError, LlmrecError
from llmrec.runs.made import require_same_data
from llmrec.stages.holding import alone
from llmrec.stages.prepared_log import (
    catalogued,
    fingerprint,
    read,
    recognised,
    source_files,
    source_path,
)

if TYPE_CHECKING:
    from llmrec.recipe import Recipe
    from llmrec.recipe.data import Data
    from llmrec.runs.folder import RunFolder

log = logging.getLogger("llmrec")

# Raised when the same settings and sources would give other files than before.
VERSION = 3
MANIFEST = "manifest.json"
CONCERN = 0.05  # shares of items or targets from which it is said once
SEEN = "seen"
_LISTED_BAD_ROWS = 100
_PARTS = ("train", "valid", "test")
_TRAIN_USERS, _COLD_ITEMS = 3, 4  # purposes of draws; 0 to 2 are the parts

_TIE_RULES = {
    "source_row": "equal timestamps of a user go in the order of the source file",
    "item_id": "equal timestamps of a user go in the order of the catalog",
    "shuffle": "equal timestamps of a user go in a seeded random order",
}
_SPLIT_RULES = {
    "leave_one_out": "a user's last item is the test target, the one before it the valid target, "
    "the rest trains; users with fewer than three interactions only train",
    "global_time": "two cuts in time by the ratios; a user's first interaction after a cut is "
    "the target; users without an earlier interaction have none",
    "sliding_window": "runs of `window` interactions of a user, by last timestamp, cut by the "
    "ratios; the last of a run is the target",
    "by_user": "users by first timestamp, cut by the ratios; a user's last item is the target",
}


@alone("prepare")
def run(recipe: "Recipe", folder: "RunFolder", offline: bool = False) -> dict[str, Any]:
    """Prepare `folder.data` as `recipe.data` says; returns the manifest and `skipped`.

    Raises DataError, and leaves what stood in `folder.data`, where the data cannot be used.
    """
    settings = settings_of(recipe)
    path = source_path(recipe.data.source, offline)
    layout = recognised(path, recipe.data)
    sources = {name: fingerprint(file) for name, file in source_files(layout).items()}
    standing = verified_manifest(folder.data)
    if standing is not None and _same(standing, settings, sources):
        log.info("prepare: %s is up to date", folder.data)
        return {**standing, "skipped": True}
    log.info("prepare: reading %s (%s)", path, layout.format)
    raw, kept, counts = read(layout, recipe.data, folder.root)
    for row in raw.bad_rows.rows[:10]:
        log.warning("prepare: left out %s", row)
    for notice in raw.bad_rows.notices:
        log.warning("prepare: %s", notice)
    kept, catalog = catalogued(kept, raw, recipe.data)
    held = held_back(len(catalog), recipe.data, recipe.seed)
    whole = _split(order(kept, recipe.data.ties, recipe.seed), recipe.data, held)
    _refuse_empty(whole, recipe.data.split)
    counts["users_without_test"] = len(kept.user_ids) - len(set(whole.test.user_ids))
    split = _drawn(whole, recipe)
    manifest = {
        "version": VERSION,
        "settings": settings,
        "format": layout.format,
        "understood": {
            name: described(file, raw.bad_rows.notices)
            for name, file in (("interactions", layout.interactions), ("items", layout.items))
            if file is not None
        },
        "sources": sources,
        "rules": _rules(recipe.data),
        "counts": counts | _sizes(kept, catalog, split),
        "shares": {part: _shares(examples) for part, examples in _parts(split).items()},
        "titles": _titles(catalog, raw),
        "cold_items": [] if held is None else np.array(catalog.item_ids)[held].tolist(),
        "notices": raw.bad_rows.notices,
        "bad_rows": [str(row) for row in raw.bad_rows.rows[:_LISTED_BAD_ROWS]],
    }
    manifest = _write(folder, catalog, split, manifest, recipe)
    log.info(
        "prepare: %(users)d users, %(items)d items, %(interactions)d interactions, "
        "%(test_examples)d test examples",
        manifest["counts"],
    )
    for concern in concerns(manifest, recipe.decode.filter_seen):
        log.warning("prepare: %s", concern)
    return {**manifest, "skipped": False}


def summary(manifest: dict[str, Any]) -> dict[str, Any]:
    """What `prepare` understood of its source and made of it, for a person to check at a glance."""
    counts, titles = manifest["counts"], manifest["titles"]
    untitled = titles["rules"].get(UNTITLED, 0)
    test = manifest["shares"]["test"]
    return {
        "format": manifest["format"],
        **manifest["understood"],
        "counts": counts,
        "share of items untitled": round(untitled / counts["items"], 4),
        "share of test targets tied with what came before": round(test["tied"], 4),
        "share of test targets cold": round(test["cold"], 4),
        "cold items held back": len(manifest["cold_items"]),
        **({"retriever": manifest["retriever"]} if "retriever" in manifest else {}),
        "notices": manifest["notices"],
        "skipped": manifest["skipped"],
    }


def concerns(manifest: dict[str, Any], filter_seen: bool) -> list[str]:
    """What of prepared data can make training worthless: shares above `CONCERN`, in words."""
    items, rules = manifest["counts"]["items"], manifest["titles"]["rules"]
    shares = {name: rules.get(name, 0) / items for name in (UNTITLED, NUMBER_SUFFIX)}
    shares[SEEN] = manifest["shares"]["test"].get(SEEN, 0.0) if filter_seen else 0.0
    what = {
        UNTITLED: 'of the items have no title and are called "Untitled item ...", of which a '
        "language model knows nothing: name the titles in data.columns.title, or their file in "
        "data.items",
        NUMBER_SUFFIX: "of the items share their title with others and are told apart by a number "
        "alone: give them brands or years (data.items_columns.brand, data.items_columns.year) or "
        "fuller titles",
        SEEN: "of the test targets stand in the user's own history already and cannot be "
        "recommended: where people choose the same again, set decode.filter_seen: false",
    }
    return [f"{share:.0%} {what[name]}" for name, share in shares.items() if share > CONCERN]


def settings_of(recipe: "Recipe") -> dict[str, Any]:
    """What of a recipe the prepared data is made by, besides the bytes of its sources."""
    settings = {"data": recipe.data.model_dump(mode="json"), "seed": recipe.seed}
    if _proposes(recipe):  # what its retriever is chosen by
        settings["baselines"] = recipe.baselines.model_dump(mode="json")
        settings["filter_seen"] = recipe.decode.filter_seen
    return settings


def _proposes(recipe: "Recipe") -> bool:
    """Whether a retriever proposes the candidates."""
    return recipe.data.candidates is not None and recipe.data.candidates.retriever is not None


def verified_manifest(data: Path) -> dict[str, Any] | None:
    """The manifest of a prepared folder, if every file it names is there as it was written."""
    try:
        manifest = sealed.read_facts(data / MANIFEST, "making it again")
        outputs = manifest["outputs"].items()
        if all(fingerprint(data / name) == recorded for name, recorded in outputs):
            return dict(manifest)
    except (DataError, OSError, ValueError, KeyError, AttributeError, TypeError):
        pass
    return None


def ordered_log(data: "Data", seed: int, sources: dict[str, Any]) -> tuple[Interactions, Catalog]:
    """The whole log before it was split, read from its source anew, and its Catalog.

    `data`, `seed` and `sources` are a manifest's. Fetches nothing; raises DataError where the
    source is gone or has other bytes.
    """
    try:
        path = source_path(data.source, offline=True)
        layout = recognised(path, data)
        found = {name: fingerprint(file) for name, file in source_files(layout).items()}
    except (LlmrecError, OSError) as error:
        raise DataError(
            f"data.source {data.source!r}, which this run was prepared from, cannot be "
            f"read again ({error}); bring it back."
        ) from None
    changed = [
        name for name, now in found.items() if now["sha256"] != sources.get(name, {}).get("sha256")
    ]
    if changed or len(found) != len(sources):
        raise DataError(
            f"data.source {data.source!r} is not what this run was prepared from: "
            f"{', '.join(changed) or 'files'} differ in SHA-256 from the manifest; "
            "bring back the source, or run `llmrec prepare` again."
        )
    raw, kept, _ = read(layout, data)
    rows, catalog = catalogued(kept, raw, data)
    return order(rows, data.ties, seed), catalog


def _same(standing: dict[str, Any], settings: dict[str, Any], sources: dict[str, Any]) -> bool:
    ours = {"version": VERSION, "settings": settings, "sources": sources}
    return all(standing.get(key) == value for key, value in ours.items())


def held_back(items: int, data: "Data", seed: int) -> Bools | None:
    """(N,) the items that `data.cold_items` holds back; None where it holds none."""
    return drawn_items(items, data.cold_items, seed, _COLD_ITEMS) if data.cold_items else None


def _split(ordered: Interactions, data: "Data", held: Bools | None) -> Split:
    if data.split == "leave_one_out":
        return leave_one_out(ordered, held)
    if data.split == "global_time":
        return global_time(ordered, data.ratios, held)
    if data.split == "by_user":
        return by_user(ordered, data.ratios, held)
    return sliding_window(ordered, data.window, data.ratios, held)


def _drawn(split: Split, recipe: "Recipe") -> Split:
    """Fewer training users, then fewer examples of each part, where the recipe asks for that."""
    data, seed = recipe.data, recipe.seed
    if data.train_users is not None:
        code_of = {name: code for code, name in enumerate(split.interactions.user_ids)}
        users = np.unique(np.array([code_of[name] for name in split.train.user_ids], np.int64))
        chosen = seeded_subset(len(users), data.train_users, seed, _TRAIN_USERS)
        split = with_train_users(split, users[chosen])
    limits = (data.subset.train, data.subset.valid, data.subset.test)
    parts = [
        part if limit is None else part.take(seeded_subset(len(part), limit, seed, purpose))
        for purpose, (part, limit) in enumerate(zip(_parts(split).values(), limits, strict=True))
    ]
    return Split(parts[0], parts[1], parts[2], split.interactions)


def _parts(split: Split) -> dict[str, Examples]:
    return dict(zip(_PARTS, (split.train, split.valid, split.test), strict=True))


def _refuse_empty(split: Split, rule: str) -> None:
    empty = [part for part, examples in _parts(split).items() if len(examples) == 0]
    if empty:
        raise DataError(
            f"data.split {rule} leaves no {' and no '.join(empty)} examples: "
            f"{_SPLIT_RULES[rule]}. Give more data or another data.split."
        )


def _rules(data: "Data") -> dict[str, str]:
    return {
        "order": "bad rows, then duplicates (user, item, timestamp; the first stays), then "
        "min_rating, then k_core, then the catalog, then the split, then the subsets",
        "catalog": "items that are left, by item_id (as integers where all are)",
        "ties": _TIE_RULES[data.ties],
        "split": _SPLIT_RULES[data.split],
        "titles": "cleaned; equal ones get the year, then the brand, then a number; the year in "
        "brackets " + ("stays" if data.year_in_title else "is dropped unless titles collide"),
        "candidates": _candidate_rule(data),
        "cold_items": f"a seeded and nested share of {data.cold_items:g} of the catalog: in no "
        "training interaction and no history, only targets of valid and test",
        "subsets": "seeded and nested; interactions.parquet keeps all training interactions of "
        "the training users",
    }


def _candidate_rule(data: "Data") -> str:
    asked = data.candidates
    if asked is None:
        return "none"
    if asked.retriever is None:
        return (
            f"the target and {asked.count - 1} items drawn of those that the user has not seen, "
            "each example's draw by the seed and the example alone; shuffled"
        )
    return (
        f"the {asked.count} best items of {asked.retriever}, fitted to the training interactions "
        "alone; a target that is not among them is a miss; shuffled by the seed and the example"
    )


def _sizes(kept: Interactions, catalog: Catalog, split: Split) -> dict[str, int]:
    sizes = {
        "users": len(kept.user_ids),
        "items": len(catalog),
        "interactions": len(kept),
        "train_interactions": len(split.interactions),
    }
    sizes |= {f"{part}_examples": len(examples) for part, examples in _parts(split).items()}
    return sizes


def _shares(examples: Examples) -> dict[str, float]:
    """Shares of targets that tie with the history's last item, that training never saw, and that
    stand in the history itself."""
    lengths = np.diff(examples.offsets)
    owner = np.repeat(np.arange(len(examples)), lengths)
    again = owner[examples.positions == examples.targets[owner]]
    return {
        "tied": float(examples.tied.mean()),
        "cold": float(examples.cold.mean()),
        SEEN: len(np.unique(again)) / max(len(examples), 1),
    }


def _titles(catalog: Catalog, raw: RawData) -> dict[str, Any]:
    return {
        "rules": dict(sorted(Counter(catalog.title_rules).items())),
        "duplicates": duplicate_titles(catalog),
        "source_items_without_row": raw.untitled_items,
        "source_items_repeated": raw.repeated_items,
    }


def _write(
    folder: "RunFolder", catalog: Catalog, split: Split, manifest: dict[str, Any], recipe: "Recipe"
) -> dict[str, Any]:
    """Write everything beside `folder.data`, then put it in place; returns the whole manifest."""
    staging = folder.data.with_name(f".{folder.data.name}.staging")
    former = folder.data.with_name(f".{folder.data.name}.former")
    if former.exists() and not folder.data.exists():
        former.rename(folder.data)  # an earlier run was killed between the two renames below
    for leftover in (staging, former):
        shutil.rmtree(leftover, ignore_errors=True)
    staging.mkdir(parents=True)
    try:
        # What the longest columns take, which Parquet packs to about half.
        positions = sum(len(examples.positions) for examples in _parts(split).values())
        require_space(staging, 2 * positions + 8 * len(split.interactions), "the prepared data")
        catalog.write(staging / folder.items.name)
        split.interactions.write(staging / folder.interactions.name)
        for part, examples in _parts(split).items():
            examples.write(staging / folder.examples(part).name)
        manifest |= _write_candidates(folder, catalog, split, staging, recipe)
        outputs = {path.name: fingerprint(path) for path in sorted(staging.iterdir())}
        manifest = {**manifest, "outputs": outputs}
        require_same_data(folder, manifest)
        sealed.write_facts(staging / MANIFEST, manifest)
        if folder.data.exists():
            folder.data.rename(former)  # a folder cannot be renamed onto one that has files
        staging.rename(folder.data)
    finally:
        if former.exists() and not folder.data.exists():
            former.rename(folder.data)
        for leftover in (staging, former):
            shutil.rmtree(leftover, ignore_errors=True)
    return manifest


def _write_candidates(
    folder: "RunFolder", catalog: Catalog, split: Split, staging: Path, recipe: "Recipe"
) -> dict[str, Any]:
    """Write the candidates of valid and test; what a manifest says of their retriever."""
    asked = recipe.data.candidates
    if asked is None:
        return {}
    parts = {
        part: (number, examples)
        for number, (part, examples) in enumerate(_parts(split).items())
        if part != "train"
    }
    if asked.retriever is None:
        for part, (number, examples) in parts.items():
            drawn = draw_candidates(examples, len(catalog), asked.count, recipe.seed, number)
            write_candidates(staging / folder.candidates(part).name, drawn)
        return {}
    from llmrec.inference.candidate_retriever import prepare_candidates

    return {
        "retriever": prepare_candidates(recipe, folder, staging, split.interactions, catalog, parts)
    }
