"""The leakage check: silent on a real run, and one sentence for each single thing planted in it."""

import json
import random
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llmrec.data.candidates import read_candidates, write_candidates
from llmrec.data.records import Examples, Interactions
from llmrec.errors import DataError
from llmrec.inference.pools import Neighbour, Pools
from llmrec.recipe.loading import load
from llmrec.runs.folder import RunFolder
from llmrec.stages import leakage, pipeline, prepare, recommend, train

STEP = 10


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    """24 users who choose at the same times, so that rows of others tie with every query."""
    rng = random.Random(0)
    lines = ["user_id,item_id,timestamp,title"]
    for user in range(24):
        start, length = rng.randrange(12), 5 + user % 5
        lines += [
            f"u{user},i{(start + step) % 12},{STEP * step},Film {(start + step) % 12}"
            for step in range(length)
        ]
    path = tmp_path_factory.mktemp("leakage") / "log.csv"
    path.write_text("\n".join(lines) + "\n", "utf-8")
    return path


@pytest.fixture(scope="module")
def finished(log, tiny_base):
    """A run that was trained and has answered, with users selected by the model."""
    path = log.with_name("small.yaml")
    path.write_text(
        f"name: small\noutput_dir: {log.parent / 'runs'}\n"
        # Fewer test than valid examples: some users have a later row that is no target.
        f"data: {{source: {log}, candidates: 4, subset: {{test: 16}}}}\n"
        f"model: {{base: {tiny_base}, lora: {{r: 4}}}}\n"
        "prompt: {task: similar_users, max_history: 4, max_tokens: 500}\n"
        "demonstrations: {count: 2, history: 3, selection: {pool: 3, refresh: 2}}\n"
        "rows: {shape: single, count: 16}\n"
        "decode: {beams: 3, top_k: 3, batch_size: 8}\n"
        "evaluate: {k: [1], samples: 100}\n"
        "systems: [popularity, untuned, tuned]\n"
        "train: {per_device_train_batch_size: 4, num_train_epochs: 1, warmup_steps: 0, "
        "dataloader_pin_memory: false}\n",
        "utf-8",
    )
    recipe = load(path, [])
    folder = RunFolder.of(recipe)
    train.run(recipe, folder)
    recommend.run(recipe, folder)
    return recipe, folder


@pytest.fixture
def copied(finished, tmp_path):
    """The recipe and a copy of the run to plant something in."""
    recipe, folder = finished
    shutil.copytree(folder.root, tmp_path / "run")
    return recipe, RunFolder(tmp_path / "run")


def rows_of(log):
    """The rows of each user as (source row, item id, time), read from the file by hand."""
    rows = {}
    for number, line in enumerate(log.read_text("utf-8").splitlines()[1:]):
        user, item, time, _ = line.split(",")
        rows.setdefault(user, []).append((number, item, int(time)))
    return rows


def position_of(folder, item):
    """A catalog position; the ids are i0 to i11, in the order of strings."""
    ids = pq.read_table(folder.items)["item_id"].to_pylist()
    return ids.index(item)


def test_a_real_run_holds_nothing_of_the_future(finished, log):
    recipe, folder = finished
    result = leakage.run(recipe, folder)
    assert result["violations"] == 0
    assert result["examples"] == []
    training = Interactions.read(folder.interactions)
    shown = [folder.shown(system) for system in ("untuned", "tuned")]
    assert all(path.is_file() for path in shown)
    selected = list(folder.selected.glob("*.json"))
    assert {path.name for path in selected} == {"0.json", "2.json"}
    pools = [Pools.read(folder.pools(part)) for part in ("train", "valid", "test")]
    users = [found for of_part in pools for pool in of_part.neighbours for found in pool]
    assert result["checked"] == {
        "training_interactions": len(training),
        "train_examples": 24,
        "valid_examples": 24,
        "test_examples": 16,
        "candidates": 4 * (24 + 16),
        "similar_users": len(users),
        "rows_of_similar_users": sum(len(found.rows) for found in users),
        "prompts_with_similar_users": 2 * 16 + 2 * 16,
        "index_vectors": len(training) - 24,
    }
    assert len(users) > 100
    first = min(Examples.read(folder.examples("test")).timestamps)
    later = sum(time > first for rows in rows_of(log).values() for _, _, time in rows[:-2])
    assert later > 0
    assert f"of which {later} are later than the earliest test target" in result["not_checked"][0]


def with_rows(folder, *rows):
    """Add (user id, position, time, source row) to the training interactions."""
    table = pq.read_table(folder.interactions)
    added = dict(
        zip(
            ("user_id", "position", "timestamp", "source_row"), zip(*rows, strict=True), strict=True
        )
    )
    plain = table.set_column(0, "user_id", table["user_id"].cast(pa.string()))
    more = pa.table(
        {name: pa.array(added[name], plain.schema.field(name).type) for name in plain.column_names}
    )
    pq.write_table(pa.concat_tables([plain, more.cast(plain.schema)]), folder.interactions)


def user_without_test(folder):
    test = set(Examples.read(folder.examples("test")).user_ids)
    valid = Examples.read(folder.examples("valid")).user_ids.tolist()
    return next((row, user) for row, user in enumerate(valid) if user not in test)


def a_future_row(folder, log):
    row, user = user_without_test(folder)
    source, item, time = rows_of(log)[user][-1]
    with_rows(folder, (user, position_of(folder, item), time, source))
    return [
        "interactions.parquet",
        f"'{user}'",
        f"time {time}",
        f"behind the target of valid.parquet row {row}",
        f"time {time - STEP}",
    ]


def a_test_target(folder, log):
    test = Examples.read(folder.examples("test"))
    user, time = test.user_ids[3], int(test.timestamps[3])
    with_rows(folder, (user, int(test.targets[3]), time, rows_of(log)[user][-1][0]))
    return ["interactions.parquet", f"'{user}'", f"time {time}", "target of test.parquet row 3"]


def a_row_that_is_not_in_the_log(folder, log):
    source, item, time = rows_of(log)["u1"][0]
    with_rows(folder, ("u1", position_of(folder, item), time - 1, source))
    return [
        "interactions.parquet row ",
        "'u1'",
        f"source row {source}, time {time - 1}",
        "no such row of the log",
    ]


def changed_history(folder, part, row, change):
    examples = Examples.read(folder.examples(part))
    first, end = examples.offsets[row : row + 2]
    positions = examples.positions.copy()
    positions[first:end] = change(positions[first:end], int(examples.targets[row]))
    Examples(
        examples.user_ids,
        examples.offsets,
        positions,
        examples.targets,
        examples.timestamps,
        examples.tied,
        examples.cold,
    ).write(folder.examples(part))
    return examples.user_ids[row], int(examples.timestamps[row])


def a_history_with_a_later_item(folder, log):
    user, time = changed_history(folder, "train", 5, lambda old, target: [*old[1:], target])
    return [
        "train.parquet row 5",
        f"'{user}'",
        f"chosen at time {time}",
        f"target's time is {time}",
    ]


def a_history_with_an_unknown_item(folder, log):
    user, time = changed_history(folder, "valid", 2, lambda old, target: [*old[:-1], 99])
    return ["valid.parquet row 2", f"'{user}'", "position 99", f"target's time is {time}"]


def a_target_that_nobody_chose(folder, log):
    examples = Examples.read(folder.examples("valid"))
    moved = examples.timestamps.copy()
    moved[2] += 1
    Examples(
        examples.user_ids,
        examples.offsets,
        examples.positions,
        examples.targets,
        moved,
        examples.tied,
        examples.cold,
    ).write(folder.examples("valid"))
    pools = Pools.read(folder.pools("valid"))  # its query is moved with it
    Pools(pools.user_ids, moved, pools.neighbours).write(folder.pools("valid"))
    return ["valid.parquet row 2", f"'{examples.user_ids[2]}'", f"time {moved[2]}, the target's"]


def a_history_longer_than_the_past(folder, log):
    test = Examples.read(folder.examples("test"))
    positions = np.concatenate([[test.positions[0]], test.positions]).astype(np.int32)
    offsets = test.offsets + 1
    offsets[0] = 0
    Examples(
        test.user_ids, offsets, positions, test.targets, test.timestamps, test.tied, test.cold
    ).write(folder.examples("test"))
    before = len(test.history(0))
    return ["test.parquet row 0", f"history of {before + 1}, and {before} rows"]


def planted_neighbour(folder, part, wanted):
    """Put what `wanted(user, time, users of the pool)` returns first in the first pool it can."""
    pools = Pools.read(folder.pools(part))
    for row, pool in enumerate(pools.neighbours):
        user, time = pools.user_ids[row], int(pools.timestamps[row])
        planted = wanted(user, time, {found.user_id for found in pool[1:]}) if pool else None
        if planted is not None:
            neighbours = [list(pool) for pool in pools.neighbours]
            neighbours[row][0] = planted
            Pools(pools.user_ids, pools.timestamps, neighbours).write(folder.pools(part))
            return row, user, time, planted
    raise AssertionError("nowhere to plant it")


def neighbour_of(folder, name, rows):
    positions = [position_of(folder, item) for _, item, _ in rows]
    return Neighbour(
        name,
        np.array(positions[:-1], np.int32),
        positions[-1],
        np.array([source for source, _, _ in rows]),
        0.5,
    )


def other_until(folder, log, after):
    """A user's training rows up to `after` seconds behind the query's time."""

    def wanted(user, time, taken):
        for name, rows in rows_of(log).items():
            until = [row for row in rows[:-2] if row[2] <= time + after]
            if name != user and name not in taken and until[-1][2] == time + after:
                return neighbour_of(folder, name, until[-2:])
        return None

    return wanted


def a_neighbour_at_the_time(folder, log):
    row, user, time, found = planted_neighbour(folder, "test", other_until(folder, log, 0))
    return [
        f"similar/test.parquet row {row}",
        f"'{user}'",
        f"query's time {time}",
        f"'{found.user_id}'",
        f"row {found.rows[-1]}, whose time {time} is not",
    ]


def a_later_neighbour(folder, log):
    row, user, time, found = planted_neighbour(folder, "train", other_until(folder, log, STEP))
    return [
        f"similar/train.parquet row {row}",
        f"'{user}'",
        f"query's time {time}",
        f"source row {found.rows[-1]}, whose time {time + STEP} is not",
    ]


def the_own_user(folder, log):
    def wanted(user, time, taken):
        return neighbour_of(folder, user, [r for r in rows_of(log)[user][:-2] if r[2] < time])

    row, user, time, _ = planted_neighbour(folder, "valid", wanted)
    return [f"similar/valid.parquet row {row}", f"'{user}'", f"query's time {time}", "own user"]


def a_neighbour_that_does_not_train(folder, log):
    def wanted(user, time, taken):
        for name, rows in rows_of(log).items():
            if name != user and name not in taken and rows[-2][2] < time:
                return neighbour_of(folder, name, rows[-3:-1])
        return None

    row, _, time, found = planted_neighbour(folder, "test", wanted)
    return [
        f"similar/test.parquet row {row}",
        f"query's time {time}",
        f"source row {found.rows[-1]}",
        "no training interaction",
    ]


def changed_neighbour(folder, change):
    pools = Pools.read(folder.pools("test"))
    row = next(
        row for row, pool in enumerate(pools.neighbours) if len(pool) > 1 and len(pool[0].rows) > 2
    )
    old = pools.neighbours[row][0]
    neighbours = [list(pool) for pool in pools.neighbours]
    neighbours[row][0] = change(old, neighbours[row][1])
    Pools(pools.user_ids, pools.timestamps, neighbours).write(folder.pools("test"))
    return f"similar/test.parquet row {row}", f"'{pools.user_ids[row]}'", old


def a_chosen_item_of_no_row(folder, log):
    other = lambda old: (old.chosen + 1) % 12  # noqa: E731
    where, user, old = changed_neighbour(
        folder, lambda old, _: Neighbour(old.user_id, old.history, other(old), old.rows, 0.5)
    )
    return [
        where,
        user,
        f"'{old.user_id}' shows position {other(old)} for source row {old.rows[-1]}",
        f"has {old.chosen}",
    ]


def a_gap_in_the_rows(folder, log):
    where, user, old = changed_neighbour(
        folder,
        lambda old, _: Neighbour(
            old.user_id, np.delete(old.history, -1), old.chosen, np.delete(old.rows, -2), 0.5
        ),
    )
    return [where, user, f"'{old.user_id}'", "do not follow one another"]


def a_row_of_nobody(folder, log):
    where, user, _ = changed_neighbour(
        folder,
        lambda old, _: Neighbour(old.user_id, old.history, old.chosen, old.rows + 10_000, 0.5),
    )
    return [where, user, "no source row"]


def a_title_without_a_row(folder, log):
    where, user, old = changed_neighbour(
        folder, lambda old, _: Neighbour(old.user_id, old.history, old.chosen, old.rows[1:], 0.5)
    )
    return [where, user, f"{len(old.rows)} titles of {len(old.rows) - 1} rows"]


def a_user_twice(folder, log):
    where, user, _ = changed_neighbour(folder, lambda old, second: second)
    return [where, user, "is in the pool 2 times"]


def a_pool_of_another_example(folder, log):
    pools = Pools.read(folder.pools("test"))
    names = pools.user_ids.copy()
    taken = {found.user_id for found in pools.neighbours[4]}
    names[4] = next(f"u{n}" for n in range(24) if f"u{n}" not in {*taken, names[4]})
    Pools(names, pools.timestamps, pools.neighbours).write(folder.pools("test"))
    return [
        "similar/test.parquet row 4",
        f"'{names[4]}'",
        f"the example is of user '{pools.user_ids[4]}' at time {pools.timestamps[4]}",
    ]


def fewer_pools(folder, log):
    pools = Pools.read(folder.pools("valid"))
    pools.take(np.arange(23)).write(folder.pools("valid"))
    return ["similar/valid.parquet", "23 prompts for 24 examples"]


def a_training_query_at_a_target(folder, log):
    pools = Pools.read(folder.pools("train"))
    user = pools.user_ids[0]
    times = pools.timestamps.copy()
    times[0] = rows_of(log)[user][-1][2]
    Pools(pools.user_ids, times, pools.neighbours).write(folder.pools("train"))
    return [
        "similar/train.parquet row 0",
        f"'{user}'",
        f"query's time {times[0]}",
        "no training interaction of the user has that time",
    ]


def changed_json(path, change):
    said = json.loads(path.read_text("utf-8"))
    if isinstance(said, dict):
        said.pop("seal", None)  # by whoever wrote it otherwise
    change(said)
    path.write_text(json.dumps(said), "utf-8")


def an_index_out_of_the_pool(folder, log):
    changed_json(folder.shown("tuned"), lambda said: said[2].__setitem__(0, 3))
    return ["similar/shown-tuned.json row 2", "shows [3, ", "a pool of 3"]


def a_neighbour_shown_twice(folder, log):
    changed_json(folder.selected / "2.json", lambda said: said[1].update(shown=[1, 1]))
    return ["selected/2.json row 1", "[1, 1]"]


def a_prompt_without_a_list(folder, log):
    changed_json(folder.shown("untuned"), lambda said: said.pop())
    return ["similar/shown-untuned.json", "15 prompts", "for 16"]


def changed_candidates(folder, change):
    drawn = read_candidates(folder.candidates("test"))
    test = Examples.read(folder.examples("test"))
    place = int(np.flatnonzero(drawn[6] != test.targets[6])[0])
    drawn[6, place] = change(drawn[6], place, test.history(6))
    write_candidates(folder.candidates("test"), drawn)
    return [f"candidates-test.parquet row 6: user '{test.user_ids[6]}'", f"{test.timestamps[6]}"]


def a_candidate_of_the_history(folder, log):
    seen = []

    def change(row, place, history):
        seen.append(int(history[-1]))
        return history[-1]

    return [*changed_candidates(folder, change), f"{seen} stand in the history"]


def a_candidate_twice(folder, log):
    target = Examples.read(folder.examples("test")).targets[6]
    return [
        *changed_candidates(
            folder, lambda row, place, _: next(r for r in np.delete(row, place) if r != target)
        ),
        "stands twice",
    ]


def the_target_twice(folder, log):
    target = Examples.read(folder.examples("test")).targets[6]
    return [*changed_candidates(folder, lambda row, place, _: target), "target stands 2 times"]


def a_candidate_outside_the_catalog(folder, log):
    return [*changed_candidates(folder, lambda row, place, _: 12), "catalog of 12 items"]


def fewer_candidates(folder, log):
    write_candidates(folder.candidates("valid"), read_candidates(folder.candidates("valid"))[:, 1:])
    return ["candidates-valid.parquet", "24 rows of 3 candidates, for 24 examples of 4"]


def an_index_of_more(folder, log):
    states = len(Interactions.read(folder.interactions)) - 24
    changed_json(
        folder.similar / "index" / "index.json", lambda said: said.update(vectors=states + 1)
    )
    return ["similar/index/index.json", f"{states + 1} states", f"have {states}"]


PLANTS = [
    a_future_row,
    a_test_target,
    a_row_that_is_not_in_the_log,
    a_history_with_a_later_item,
    a_history_with_an_unknown_item,
    a_target_that_nobody_chose,
    a_history_longer_than_the_past,
    a_neighbour_at_the_time,
    a_later_neighbour,
    the_own_user,
    a_neighbour_that_does_not_train,
    a_chosen_item_of_no_row,
    a_gap_in_the_rows,
    a_row_of_nobody,
    a_title_without_a_row,
    a_user_twice,
    a_pool_of_another_example,
    fewer_pools,
    a_training_query_at_a_target,
    an_index_out_of_the_pool,
    a_neighbour_shown_twice,
    a_prompt_without_a_list,
    a_candidate_of_the_history,
    a_candidate_twice,
    the_target_twice,
    a_candidate_outside_the_catalog,
    fewer_candidates,
    an_index_of_more,
]


@pytest.mark.parametrize("plant", PLANTS, ids=lambda plant: plant.__name__)
def test_one_planted_thing_is_the_one_reported(copied, log, plant):
    recipe, folder = copied
    expected = plant(folder, log)
    result = leakage.run(recipe, folder)
    assert result["violations"] == len(result["examples"]) == 1, result["examples"]
    for words in expected:
        assert words in result["examples"][0]


def test_all_violations_are_counted_and_twenty_told(copied):
    recipe, folder = copied
    drawn = read_candidates(folder.candidates("valid"))
    write_candidates(folder.candidates("valid"), np.full_like(drawn, 12))
    result = leakage.run(recipe, folder)
    # Of each of 24 rows: no target, the same item again, outside the catalog.
    assert (result["violations"], len(result["examples"])) == (72, 20)


def another_source(folder, log):
    other = folder.root / "other.csv"
    other.write_text(log.read_text("utf-8") + "u1,i1,999,Film 1\n", "utf-8")
    changed_json(
        folder.data / "manifest.json",
        lambda said: said["settings"]["data"].update(source=str(other)),
    )
    return "interactions differ in SHA-256"


def no_source(folder, log):
    changed_json(
        folder.data / "manifest.json",
        lambda said: said["settings"]["data"].update(source="/no/such.csv"),
    )
    return "cannot be read again"


def no_manifest(folder, log):
    (folder.data / "manifest.json").unlink()
    return "nothing to check"


def a_manifest_of_another_kind(folder, log):
    changed_json(folder.data / "manifest.json", lambda said: said.pop("settings"))
    return "no manifest of this version"


def no_examples(folder, log):
    folder.examples("valid").unlink()
    return "valid.parquet cannot be read"


def a_damaged_list(folder, log):
    folder.shown("tuned").write_text("[[0, 1]", "utf-8")
    return "shown-tuned.json cannot be read"


def a_list_of_something_else(folder, log):
    folder.shown("tuned").write_text("[0, 1]", "utf-8")
    return "does not say which similar users were shown"


@pytest.mark.parametrize(
    "damage",
    [
        another_source,
        no_source,
        no_manifest,
        a_manifest_of_another_kind,
        no_examples,
        a_damaged_list,
        a_list_of_something_else,
    ],
    ids=lambda damage: damage.__name__,
)
def test_what_cannot_be_checked_is_refused(copied, log, damage):
    recipe, folder = copied
    message = damage(folder, log)
    with pytest.raises(DataError, match=message):
        leakage.run(recipe, folder)


@pytest.mark.parametrize("split", ["global_time", "sliding_window", "by_user"])
@pytest.mark.parametrize("ties", ["source_row", "item_id", "shuffle"])
def test_data_alone_is_checked_under_every_split(recipe_of, log, tmp_path, split, ties):
    """The rows of the log in reverse, times that tie and users that do not train."""
    head, *rows = log.read_text("utf-8").splitlines()
    source = tmp_path / "shuffled.csv"
    tied = []
    for row in reversed(rows):
        user, item, time, title = row.split(",", 3)
        tied.append(f"{user},{item},{int(time) // (2 * STEP)},{title}")
    source.write_text("\n".join([head, *tied]) + "\n", "utf-8")
    recipe, folder = recipe_of(
        f"data.source={source}",
        f"data.split={split}",
        f"data.ties={ties}",
        "data.window=3",
        "data.ratios=[0.4,0.3,0.3]",
        "data.train_users=8",
        "data.candidates=3",
        "prompt.task=similar_users",
        "rows.shape=single",
        "systems=[popularity]",
    )
    prepare.run(recipe, folder)
    result = leakage.run(recipe, folder)
    assert result["examples"] == []
    assert result["violations"] == 0
    assert result["checked"]["test_examples"] > 0
    test = Examples.read(folder.examples("test"))
    moved = test.timestamps + 10_000_000
    Examples(
        test.user_ids, test.offsets, test.positions, test.targets, moved, test.tied, test.cold
    ).write(folder.examples("test"))
    assert leakage.run(recipe, folder)["violations"] == len(test)


def test_networks_are_held_against_the_interactions_of_the_run(recipe_of):
    sizes = ("network.hidden=8", "network.max_epochs=1", "network.trials=1")
    views = ("conformal.view=valid", "conformal.max_epochs=1", "conformal.learning_rate=0.001")
    plain = ("systems=[popularity, network, network_cpft]", *sizes, *views)
    recipe, folder = recipe_of(*plain)
    pipeline.train(recipe, folder)
    said = leakage.run(recipe, folder)
    assert (said["checked"]["networks"], said["violations"]) == (2, 0), said["examples"]
    assert any("set views end with validation items" in text for text in said["not_checked"])
    training = Interactions.read(folder.interactions)
    training.take(np.arange(len(training) - 1)).write(folder.interactions)
    said = leakage.run(recipe, folder)
    assert said["violations"] == 2
    assert "network/base: was trained on other interactions" in said["examples"][0]
    (folder.network("cpft") / "model.safetensors").write_bytes(b"")
    assert "network/cpft: model.safetensors differs" in leakage.run(recipe, folder)["examples"][1]
