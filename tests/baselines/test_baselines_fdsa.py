"""FDSA: words of titles, attention over them by hand, causality, and items told by their titles."""

import numpy as np
import torch

from llmrec.baselines.fdsa import FDSA, WORDS, title_words
from llmrec.baselines.network_tuning import Store, Task, tune
from llmrec.data.records import Examples, Interactions, concatenated, offsets_of

TITLES = ["Red Star", "the Red Sea", "Star of the Sea", "Alone", "RED red", ""]
SIZES = FDSA(hidden=8, layers=1, heads=2, max_length=6, dropout=0.0)


def network(titles=TITLES):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return SIZES.network(len(titles), titles).eval()


def test_words_are_those_that_titles_share_in_their_order():
    red, star, the, sea = 1, 2, 3, 4
    assert title_words(TITLES).tolist() == [
        [red, star, 0],
        [the, red, sea],
        [star, the, sea],  # "of" and "alone" stand in one title
        [0, 0, 0],
        [red, 0, 0],
        [0, 0, 0],
    ]
    assert title_words(["a b", "c d"]).tolist() == [[0], [0]]
    long = " ".join(f"w{n}" for n in range(40))
    assert title_words([long, long]).shape == (2, WORDS)


@torch.no_grad()
def test_features_are_words_weighed_by_attention():
    net = network()
    net.attention.weight.mul_(20.0)  # weights far apart
    vectors = net.features.weight.double().numpy()
    layer, bias = net.attention.weight.double().numpy()[0], net.attention.bias.item()
    found = net.features_of(torch.tensor([[0, 1], [3, 4]])).numpy()
    for place, words in (((0, 0), [1, 2]), ((0, 1), [3, 1, 4]), ((1, 1), [1])):
        scores = np.exp(vectors[words] @ layer + bias)
        expected = (scores / scores.sum()) @ vectors[words]
        np.testing.assert_allclose(found[place], expected, atol=1e-6)
    assert (found[1, 0] == 0).all()


@torch.no_grad()
def test_a_later_item_changes_nothing_before_it_and_titles_count():
    net = network()
    before, after = net(torch.tensor([[0, 1, 2, 4]])), net(torch.tensor([[0, 1, 5, 4]]))
    torch.testing.assert_close(before[:, :2], after[:, :2], rtol=0, atol=1e-6)
    assert (before[:, 2:] - after[:, 2:]).abs().amax(dim=2).min() > 1e-4
    other = network(["Red Star", "the Star Sea", *TITLES[2:]])
    other.load_state_dict(net.state_dict())
    assert (other(torch.tensor([[1]])) - net(torch.tensor([[1]]))).abs().max() > 1e-4


def pairs():
    """Users who go from an item to the one whose title shares its word; each pair is one user's."""
    titles = [f"{kind} w{n}" for n in range(30) for kind in ("first", "second")]
    histories = [np.array([2 * n, 2 * n + 1], np.int32) for n in range(30) for _ in range(4)]
    users = len(histories)
    rows, names = np.arange(2 * users), np.arange(users).astype(object)
    train = Interactions(
        np.repeat(np.arange(users), 2).astype(np.int32), concatenated(histories), rows, rows, names
    )
    flags = np.zeros(users, bool)
    valid = Examples(
        names,
        offsets_of([h[:1] for h in histories]),
        concatenated([h[:1] for h in histories]),
        np.array([h[1] for h in histories], np.int32),
        np.zeros(users, np.int64),
        flags,
        flags,
    )
    return titles, train, valid


def test_it_learns_and_is_kept_by_its_titles(tmp_path):
    titles, train, valid = pairs()
    start = FDSA(hidden=16, max_length=4, dropout=0.0, learning_rate=0.02, max_epochs=12)
    task = Task(train, len(titles), valid, False, 0, Store(tmp_path), titles)
    found = tune([start], task)
    assert found.ndcg > 0.9
    again = tune([start], task)
    assert len(list(tmp_path.iterdir())) == 1
    history = [np.array([6], np.int32)]
    assert again.fitted.probabilities(history).tobytes() == (
        found.fitted.probabilities(history).tobytes()
    )
    other = Task(train, len(titles), valid, False, 0, Store(tmp_path), titles[::-1])
    assert other.key(start) != task.key(start)
