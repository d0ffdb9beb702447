"""`llmrec check leakage`: prompts are made of nothing later than their own time.

Reads the raw source anew and holds the files of a run against it, row by row: training
interactions, examples, candidates, similar users, those whose votes count, what of these was shown,
and what networks were trained on. Trusts none of those
files and asks no retriever. Knows no text: prompts are not kept, what they are made from is.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from llmrec.data import sealed
from llmrec.data.candidates import read_candidates
from llmrec.data.records import Examples, Interactions, Longs
from llmrec.errors import DataError
from llmrec.inference.pools import Pools
from llmrec.recipe.data import Data
from llmrec.stages import prepare
from llmrec.stages.holding import alone
from llmrec.stages.leakage_checks import (
    NOT_THERE,
    Findings,
    Log,
    check_candidates,
    check_pools,
    check_training,
    wrong_in_history,
)
from llmrec.stages.leakage_networks import check_networks

if TYPE_CHECKING:
    from llmrec.recipe import Recipe
    from llmrec.runs.folder import RunFolder

PARTS = ("train", "valid", "test")


@alone("check leakage")
def run(recipe: "Recipe", folder: "RunFolder") -> dict[str, Any]:
    """Check all that stands in a run folder.

    Returns `checked` (how many of what), `violations` (how many), `examples` (the first of them in
    words) and `not_checked` (what this says nothing of). Raises DataError where nothing is
    prepared, where a file cannot be read, or where the source is no longer what was prepared.
    """
    data, seed, sources = _prepared_from(folder)
    rows, catalog = prepare.ordered_log(data, seed, sources)
    log = Log(rows, catalog, prepare.held_back(len(catalog), data, seed))
    found = Findings()
    training = _read(folder.interactions, Interactions.read)
    examples = {part: _read(folder.examples(part), Examples.read) for part in PARTS}
    targets = {part: log.targets(of_part) for part, of_part in examples.items()}
    trained = check_training(log, training, examples, targets, folder.interactions.name, found)
    for part, of_part in examples.items():
        _check_examples(log, of_part, targets[part], folder.examples(part).name, found)
    if data.candidates is not None:
        for part in ("valid", "test"):
            drawn = _read(folder.candidates(part), read_candidates)
            check_candidates(
                examples[part],
                drawn,
                data.candidates.count,
                log.items,
                folder.candidates(part).name,
                found,
                proposed=data.candidates.retriever is not None,
            )
    pools = {
        part: _read(folder.pools(part), Pools.read)
        for part in PARTS
        if folder.pools(part).is_file()
    }
    for part, of_part in pools.items():
        asked = None if part == "train" else examples[part]
        check_pools(log, of_part, asked, trained, _inside(folder, folder.pools(part)), found)
    for part in PARTS:
        place = folder.voters(part)
        if place.is_file():
            # What votes list is a count over these users and nothing else.
            asked, voters = (None if part == "train" else examples[part]), _read(place, Pools.read)
            check_pools(log, voters, asked, trained, _inside(folder, place), found, "voters")
    _check_shown(folder, pools, found)
    _check_index(folder, training, found)
    check_networks(folder, found)
    return {
        "checked": dict(found.checked),
        "violations": found.violations,
        "examples": found.examples,
        "not_checked": list(_not_checked(recipe, folder, data, training, examples["test"])),
    }


def _prepared_from(folder: "RunFolder") -> tuple[Data, int, dict[str, Any]]:
    """Settings, seed and sources of a prepared folder's manifest."""
    path = folder.data / prepare.MANIFEST
    if not path.is_file():
        raise DataError(
            f"{path} is not there, so there is nothing to check; run `llmrec prepare` first."
        )
    manifest = sealed.read_facts(path, "run `llmrec prepare` again.")
    try:
        settings = manifest["settings"]
        data = Data.model_validate_json(json.dumps(settings["data"]))
        return data, int(settings["seed"]), dict(manifest["sources"])
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{path}: no manifest of this version ({error}); run `llmrec prepare` again."
        ) from None


def _check_examples(
    log: Log, examples: Examples, targets: Longs, file: str, found: Findings
) -> None:
    """The target is a row of the log, the history the rows right before it."""
    found.checked[f"{Path(file).stem}_examples"] += len(examples)
    for number, (example, target) in enumerate(zip(examples, targets.tolist(), strict=True)):
        where = f"{file} row {number}: user {example.user_id!r}"
        if target == NOT_THERE:
            found.wrong(
                f"{where} has no row of the log with position {example.target} at time "
                f"{example.timestamp}, the target's"
            )
            continue
        wrong = wrong_in_history(log, example, target)
        if wrong is not None:
            found.wrong(f"{where}: {wrong}; the target's time is {example.timestamp}")


def _check_shown(folder: "RunFolder", pools: dict[str, Pools], found: Findings) -> None:
    """What was shown of similar users is in the pools, and nobody is shown twice."""
    chosen: list[tuple[Path, str, Callable[[Any], Any]]] = [
        (path, "test", lambda said: said) for path in sorted(folder.similar.glob("shown-*.json"))
    ]
    for selected in (folder.selected, folder.sft.selected):
        chosen += [
            (path, "train", lambda said: said["shown"]) for path in sorted(selected.glob("*.json"))
        ]
    for path, part, shown_of in chosen:
        file, said = _inside(folder, path), _json(path)
        sizes = [len(pool) for pool in pools[part].neighbours] if part in pools else []
        try:
            prompts = [[int(at) for at in shown_of(one)] for one in said]
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"{path}: does not say which similar users were shown ({error}); run "
                "the stage that wrote it again."
            ) from None
        found.checked["prompts_with_similar_users"] += len(prompts)
        if len(prompts) != len(sizes):
            found.wrong(
                f"{file}: users shown in {len(prompts)} prompts, and {part} has "
                f"similar users for {len(sizes)}"
            )
        for row, (shown, size) in enumerate(zip(prompts, sizes, strict=False)):
            of = f"{file} row {row}: user {pools[part].user_ids[row]!r}"
            if any(not 0 <= at < size for at in shown):
                found.wrong(f"{of}: shows {shown} of a pool of {size}")
            if len(set(shown)) < len(shown):
                found.wrong(f"{of}: shows one of the pool twice, {shown}")


def _check_index(folder: "RunFolder", training: Interactions, found: Findings) -> None:
    """The index holds no more states than the training interactions have."""
    about = folder.similar / "index" / "index.json"
    if not about.is_file():
        return
    try:
        vectors, written = int(_json(about)["vectors"]), _json(about)["fingerprint"]
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{about}: does not describe an index ({error}); remove {about.parent} and "
            "run `llmrec retrieve` again."
        ) from None
    found.checked["index_vectors"] += vectors
    # A user's first choice ends no state.
    states = len(training) - len(np.unique(training.user))
    if vectors > states:
        found.wrong(
            f"{_inside(folder, about)}: {vectors} states (fingerprint {written[:16]}), and "
            f"the training interactions have {states}"
        )


def _not_checked(
    recipe: "Recipe", folder: "RunFolder", data: Data, training: Interactions, test: Examples
) -> Iterator[str]:
    """What a run without violations may still rest on, in sentences."""
    later = int((training.timestamp > test.timestamps.min()).sum()) if len(test) else 0
    yield (
        f"Counts, vectors of items, baselines and trained weights rest on all {len(training)} "
        f"training interactions, of which {later} are later than the earliest test target"
        + (f": rows of other users, as usual under data.split {data.split}." if later else ".")
    )
    if recipe.conformal is not None and recipe.conformal.view == "valid":
        yield "conformal.view is valid: set views end with validation items, which no label is."
    yield "Prompts are not kept: what they are made from was checked, not their text."
    yield "What the language model had read before this run is not known here."
    if data.candidates is not None:
        if data.candidates.retriever is not None:
            yield (
                f"Which items {data.candidates.retriever} proposes was not found again; it is "
                "fitted to the training interactions, and chosen by the validation targets."
            )
        yield "Candidates of training prompts are drawn while training and not kept."
    if (folder.similar / "index").is_dir():
        yield "Of the index the number of its vectors was checked, not the vectors."
    wanted = recipe.demonstrations
    if wanted is not None and wanted.shows_votes and wanted.votes.pick == "random":
        yield "Titles shown as votes were drawn at random from those that a user had not seen."
    if wanted is not None and wanted.leaks:
        yield "demonstrations.by is leaky: prompts show other users' answers, as violations say."
    if wanted is not None and wanted.shows_users:
        for part in PARTS:
            if not folder.pools(part).is_file():
                yield f"No similar users of {part} prompts stand in the run."


def _read(path: Path, reader: Callable[[Path], Any]) -> Any:
    try:
        return reader(path)
    except (OSError, pa.ArrowException, KeyError) as error:
        raise DataError(f"{path} cannot be read ({error}); run `llmrec prepare` again.") from None


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path} cannot be read ({error}); run the stage that wrote it again."
        ) from None


def _inside(folder: "RunFolder", path: Path) -> str:
    return path.relative_to(folder.root).as_posix()
