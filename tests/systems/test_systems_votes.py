"""System `votes` and votes in prompts, against counts from the raw log as of the time asked."""

import random
from collections import Counter

import numpy as np
import pytest

from llmrec.data.catalog import Catalog
from llmrec.data.records import Examples
from llmrec.errors import RecipeError
from llmrec.evaluation.predictions import Predictions
from llmrec.inference.from_recipe import encoder_of
from llmrec.inference.pools import Pools
from llmrec.inference.prompting import prompting_of
from llmrec.stages import leakage, prepare, recommend
from llmrec.systems.recommender import Recommender

SHOWN = ("prompt.task=similar_users", "demonstrations.show=votes", "demonstrations.votes.titles=4")


@pytest.fixture
def log(tmp_path):
    """30 users of four choices each, at times that cross; what they chose, by user."""
    rng = random.Random(1)
    chosen = {f"u{user}": rng.sample(range(9), 4) for user in range(30)}
    times = {user: sorted(rng.sample(range(1000), 4)) for user in chosen}
    lines = ["user_id,item_id,timestamp,title"]
    for user, items in chosen.items():
        lines += [f"{user},i{i},{t},Film {i}" for i, t in zip(items, times[user], strict=True)]
    path = tmp_path / "four.csv"
    path.write_text("\n".join(lines) + "\n", "utf-8")
    return path, chosen, times


def counted(chosen, times, user, time):
    """Votes of all others who had made their second choice before `time`: the first is a history,
    the second what came next, and their last two are held out."""
    votes = Counter()
    for other, items in chosen.items():
        if other != user and times[other][1] < time:
            votes.update(set(items[:2]))
    return votes


def test_the_row_counts_what_others_had_chosen_when_it_was_asked(recipe_of, log):
    source, chosen, times = log
    recipe, folder = recipe_of(f"data.source={source}", *SHOWN, "systems=[popularity, votes]")
    recommend.run(recipe, folder)
    found = Predictions.read(folder.predictions("votes"))
    assert found.info.kind == "baseline"
    prior = found.info.hyperparameters["prior"]
    items = [int(i[1:]) for i in Catalog.read(folder.items).item_ids]
    test = Examples.read(folder.examples("test"))
    counts = Counter(i for one in chosen.values() for i in one[:2])
    popularity = {i: (counts[i] + 1) / (60 + 9) for i in range(9)}
    asked_late = 0
    for row, example in enumerate(test):
        votes = counted(chosen, times, example.user_id, example.timestamp)
        asked_late += sum(votes.values()) < 58
        open_items = [i for i in range(9) if i not in chosen[example.user_id][:3]]
        weights = {i: votes[i] + prior * popularity[i] for i in open_items}
        wanted = sorted(open_items, key=lambda i: (-weights[i], items.index(i)))
        assert [items[p] for p in found.ranking(row)] == wanted
        target = chosen[example.user_id][3]
        assert found.nll[row] == pytest.approx(-np.log(weights[target] / sum(weights.values())))
    assert asked_late > 10, "what comes later must be there to be left out"
    values = found.info.hyperparameters["valid_nll"]
    assert values[f"{prior:g}"] == min(values.values())


def test_a_prompt_lists_the_titles_with_most_votes_and_leakage_is_silent(recipe_of, log):
    source, chosen, times = log
    recipe, folder = recipe_of(f"data.source={source}", *SHOWN, "systems=[votes, untuned]")
    recommend.run(recipe, folder)
    test = Examples.read(folder.examples("test"))
    encoder = encoder_of(recipe, Catalog.read(folder.items))
    prompts = prompting_of(recipe, folder, encoder, "test", test).ids()
    among = 0
    for example, ids in zip(test, prompts, strict=True):
        lines = encoder.tokenizer.decode(ids.tolist()).split("\n")
        votes = counted(chosen, times, example.user_id, example.timestamp)
        seen = chosen[example.user_id][:3]
        votes = Counter({i: n for i, n in votes.items() if i not in seen})
        if not votes:
            assert not any(line.startswith("Similar users") for line in lines)
            continue
        begin = lines.index("Similar users watched these, the most common first:") + 1
        shown = [int(line.split()[1]) for line in lines[begin : lines.index("", begin)]]
        assert [votes[i] for i in shown] == sorted(votes.values(), reverse=True)[:4]
        assert len(shown) == len(set(shown))
        among += chosen[example.user_id][3] in shown
    said = Predictions.read(folder.predictions("untuned")).info.hyperparameters
    assert said["targets_among_votes"] == pytest.approx(among / len(test))
    result = leakage.run(recipe, folder)
    assert result["violations"] == 0
    voters = Pools.read(folder.voters("test"))
    assert result["checked"]["voters"] == sum(map(len, voters.neighbours)) + sum(
        map(len, Pools.read(folder.voters("valid")).neighbours)
    )


def test_a_vote_from_the_future_is_found_out(recipe_of, log):
    source, *_ = log
    recipe, folder = recipe_of(f"data.source={source}", *SHOWN, "systems=[votes]")
    recommend.run(recipe, folder)
    assert leakage.run(recipe, folder)["violations"] == 0
    voters = Pools.read(folder.voters("test"))
    early = Pools(voters.user_ids, voters.timestamps - 700, voters.neighbours)
    early.write(folder.voters("test"))
    result = leakage.run(recipe, folder)
    assert result["violations"] > 0
    assert any("not earlier than the query's" in text for text in result["examples"])


def test_random_titles_are_unseen_and_others_for_everybody(recipe_of, log):
    source, chosen, _ = log
    recipe, folder = recipe_of(
        f"data.source={source}", *SHOWN, "demonstrations.votes.pick=random", "systems=[untuned]"
    )
    prepare.run(recipe, folder)
    test = Examples.read(folder.examples("test"))
    encoder = encoder_of(recipe, Catalog.read(folder.items))
    items = [int(i[1:]) for i in Catalog.read(folder.items).item_ids]
    drawn = prompting_of(recipe, folder, encoder, "test", test).votes
    assert drawn is not None
    for example, titles in zip(test, drawn, strict=True):
        assert len(set(titles.tolist())) == 4
        assert not {items[p] for p in titles} & set(chosen[example.user_id][:3])
    hits = np.mean([t in v for t, v in zip(test.targets, drawn, strict=True)])
    assert 0.25 < hits < 0.95  # by chance 4 of 6: neither always nor never
    assert len({tuple(sorted(v.tolist())) for v in drawn}) > 10
    assert not folder.voters("test").exists()


def test_votes_answer_raw_histories_by_all_that_is_known(recipe_of, log):
    source, chosen, times = log
    recipe, folder = recipe_of(f"data.source={source}", *SHOWN, "systems=[votes]")
    recommend.run(recipe, folder)
    folder.keep(recipe)
    recommender = Recommender.from_pretrained(folder.root, system="votes")
    table = recommender.recommend([[f"i{i}" for i in chosen["u3"][:3]]], top_k=6)
    votes = counted(chosen, times, None, 10**9)
    votes = {f"i{i}": n for i, n in votes.items() if i not in chosen["u3"][:3]}
    counts = [votes.get(item, 0) for item in table["item_id"].to_pylist()]
    assert counts == sorted(votes.values(), reverse=True)[: len(counts)]


def test_what_votes_need_is_said(recipe_of):
    with pytest.raises(RecipeError, match=r"votes.*needs section demonstrations"):
        recipe_of("systems=[votes]")
    for asked in ("demonstrations.show=votes", "systems=[popularity, votes]"):
        with pytest.raises(RecipeError, match="coarse"):
            recipe_of("prompt.task=similar_users", "demonstrations.votes.users=900", asked)
    recipe_of("prompt.task=similar_users", "demonstrations.votes.users=900")  # counted by nobody
    with pytest.raises(RecipeError, match="shows none"):
        recipe_of(*SHOWN, "demonstrations.selection.pool=3")
