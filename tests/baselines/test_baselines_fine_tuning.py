"""Fine-tuning: what the two views read, what is learned, determinism, and NDCG of an epoch."""

import copy
import itertools

import numpy as np
import pytest
import torch

from llmrec.baselines import fine_tuning
from llmrec.baselines.fine_tuning import FineTuning, batches, following_items, places_of
from llmrec.baselines.gru4rec import GRU4Rec
from llmrec.baselines.ranking import mean_ndcg, predict
from llmrec.baselines.rows import Rows
from llmrec.baselines.sasrec import SASRec
from llmrec.baselines.sequential import FittedNetwork
from llmrec.data.records import Examples, Interactions, concatenated, offsets_of

# Each item stands once and is followed by the next number, so an item says where it stands.
SEQUENCES = [list(range(0, 11)), list(range(20, 23)), list(range(30, 39)), [45, 46]]
FOLLOWING = {0: 50, 1: 51, 3: 52}  # nothing follows sequence 2
ITEMS = 60
SIZES = SASRec(hidden=8, layers=1, max_length=4, dropout=0.0)
PLAN = FineTuning(learning_rate=1e-3, batch_size=6, max_epochs=3)


def interactions(sequences, names=None):
    """The sequences as users' rows."""
    lengths = [len(s) for s in sequences]
    rows = np.arange(sum(lengths))
    users = np.repeat(np.arange(len(sequences)), lengths).astype(np.int32)
    names = names or [f"u{n}" for n in range(len(sequences))]
    return Interactions(
        users, np.concatenate(sequences).astype(np.int32), rows, rows, np.array(names, object)
    )


def examples(names, histories, targets):
    histories = [np.array(h, np.int32) for h in histories]
    flags = np.zeros(len(names), dtype=bool)
    return Examples(
        np.array(names, object),
        offsets_of(histories),
        concatenated(histories),
        np.array(targets, np.int32),
        np.zeros(len(names), np.int64),
        flags,
        flags,
    )


TRAIN = interactions(SEQUENCES)
VALID = examples(
    [f"u{n}" for n in FOLLOWING], [SEQUENCES[n] for n in FOLLOWING], list(FOLLOWING.values())
)


def untrained(sizes=SIZES, seed=0, items=ITEMS):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return FittedNetwork(sizes.network(items).eval(), 1.0, 0)


def rows_of(*rows):
    """Rows of (items that are read, how many of them are followed by a label)."""
    read, places = ([f(row) for row in rows] for f in (lambda r: len(r[0]), lambda r: r[1]))
    starts = np.cumsum([0, *read])[:-1]
    return Rows.of(
        torch.tensor([item for items, _ in rows for item in items]),
        *(np.array(x) for x in (starts, read, places)),
    )


def lists(rows, count):
    """The first so many items of each row."""
    flat = rows.items.tolist()
    return [flat[a : a + n] for a, n in zip(rows.start.tolist(), count.tolist(), strict=True)]


def nothing(network, hidden, at):
    """A loss that adds nothing to learn from."""
    return 0.0 * hidden.sum(), {"nothing": torch.zeros(())}


def state_bytes(fitted):
    return b"".join(t.numpy().tobytes() for t in fitted.network.state_dict().values())


def test_following_items_are_those_right_after_a_training_sequence():
    train = interactions([[1, 2, 3], [4, 5], [6, 7], [8, 9], [1, 1]], ["a", "b", "c", "d", "e"])
    valid = examples(
        ["e", "b", "stranger", "a", "c", "c"],
        [[1, 1], [5], [4, 5], [1, 2, 3], [6, 7, 8], [6, 7]],
        [9, 8, 7, 0, 5, 4],
    )
    # b's history is cut, one of c's goes on too far, d is not validated.
    assert following_items(train, valid) == {0: 0, 2: 4, 4: 9}
    assert following_items(train, valid.take(np.arange(0))) == {}


def test_following_items_go_by_sequence_and_not_by_the_number_of_the_user():
    train = interactions([[1, 2], [3, 4], [5, 6]], ["a", "b", "c"])
    fewer = train.take(np.array([4, 5, 2, 3]))  # c, then b; a has no row
    valid = examples(["a", "b", "c"], [[1, 2], [3, 4], [5, 6]], [7, 8, 9])
    assert following_items(fewer, valid) == {0: 9, 1: 8}


@pytest.fixture
def learned(monkeypatch):
    """Batches whose cross-entropy was learned."""
    real, calls = fine_tuning.cross_entropy_backward, []

    def recording(network, batch):
        assert (batch.read == batch.places).all()  # nothing is read but what is learned from
        calls.append(lists(batch, batch.places + 1))
        return real(network, batch)

    monkeypatch.setattr(fine_tuning, "cross_entropy_backward", recording)
    return calls


@pytest.fixture
def read(monkeypatch):
    """What a loss was given, batch by batch: (rows, how far ahead, places)."""
    real, calls = fine_tuning.places_of, []

    def recording(network, batch, ahead):
        hidden, places = real(network, batch, ahead)
        of_row = zip(lists(batch, batch.read), batch.places.tolist(), strict=True)
        calls.append((list(of_row), ahead, places))
        return hidden, places

    monkeypatch.setattr(fine_tuning, "places_of", recording)
    return calls


@pytest.mark.parametrize("sizes", [SIZES, GRU4Rec(hidden=8, max_length=4, dropout=0.0)])
@pytest.mark.parametrize("ahead", [1, 2])
def test_one_pass_says_what_a_pass_over_each_prefix_says(sizes, ahead):
    network = untrained(sizes).network
    batch = [([1, 2, 3, 4], 3), ([5, 6], 1), ([7, 8, 9], 1), ([10, 11, 12, 13], 2)]
    hidden, at = places_of(network, rows_of(*batch), ahead)
    by_label = {}
    for items, places in batch:
        for place in range(1, places + 1):
            views = items[:place], items[: place + ahead]
            by_label[items[place]] = tuple(np.array(view) for view in views)
    assert sorted(at.labels.tolist()) == sorted(by_label)
    for view, index in ((0, at.train), (1, at.sets)):
        expected = network.after([by_label[label][view] for label in at.labels.tolist()])
        torch.testing.assert_close(network.logits(hidden[index]), expected, rtol=0, atol=1e-5)
    for label, place in zip(at.labels.tolist(), at.sets.tolist(), strict=True):
        longer = by_label[label][1]
        assert (label == longer[-1]) == (ahead == 1 or len(longer) == len(by_label[label][0]) + 1)
        assert 0 <= place < len(hidden)


def test_batches_count_places():
    rows = rows_of(*((range(n + 1), n) for n in (2, 2, 3, 9, 1, 1, 1)))
    cut = [batch.places.tolist() for batch in batches(rows, 5)]
    assert cut == [[2, 2], [3], [9], [1, 1, 1]]
    assert list(batches(rows[:0], 5)) == []


@pytest.mark.parametrize("following", [FOLLOWING, {}, None])
def test_views_end_where_they_should(read, following):
    PLAN.fit(untrained(), TRAIN, VALID, False, 0, nothing, following)
    sequence_of = {item: SEQUENCES[n] for n in range(len(SEQUENCES)) for item in SEQUENCES[n]}
    number_of = {s[0]: n for n, s in enumerate(SEQUENCES)}
    inside = at_end = 0
    for batch, ahead, at in read:
        assert ahead == (1 if following is None else 2)
        labels = [item for items, places in batch for item in items[1 : places + 1]]
        assert sorted(at.labels.tolist()) == sorted(labels)
        for items, places in batch:
            learned, further = items[: places + 1], items[places + 1 :]
            sequence = sequence_of[int(learned[0])]
            assert (np.diff(learned) == 1).all()
            assert len(items) <= SIZES.max_length
            if int(learned[-1]) == sequence[-1]:
                at_end += 1
                known = (following or {}).get(number_of[sequence[0]])
                assert further == ([] if known is None else [known])
            else:
                inside += 1
                assert further == ([] if following is None else [int(learned[-1]) + 1])
    assert min(inside, at_end) > 5


def test_a_loss_is_asked_of_every_place_once_an_epoch_and_no_validation_item(read):
    PLAN.fit(untrained(), TRAIN, VALID, False, 0, nothing, FOLLOWING)
    found = [label for _, _, at in read for label in at.labels.tolist()]
    assert sorted(found) == sorted([item for s in SEQUENCES for item in s[1:]] * PLAN.max_epochs)


def test_every_transition_is_learned_once_an_epoch_and_no_validation_item(learned):
    PLAN.fit(untrained(), TRAIN, VALID, False, 0, None, FOLLOWING)
    found = [pair for batch in learned for row in batch for pair in itertools.pairwise(row)]
    once = [pair for s in SEQUENCES for pair in itertools.pairwise(s)]
    assert sorted(found) == sorted(once * PLAN.max_epochs)
    assert not {item for pair in found for item in pair} & set(FOLLOWING.values())


@pytest.mark.parametrize("view", ["train", "sets"])
def test_the_loss_changes_what_is_learned_through_both_views(view):
    def towards(network, hidden, at):
        log_p = network.logits(hidden).log_softmax(dim=-1)
        value = -log_p[getattr(at, view), 7].mean()  # item 7 becomes likelier
        return 50.0 * value, {"value": value.item()}

    history = [np.array([45, 46], np.int32)]
    plan, nobody = FineTuning(1e-2, batch_size=50, max_epochs=5), VALID.take(np.arange(0))
    plain = plan.fit(untrained(), TRAIN, nobody, False, 0, nothing, FOLLOWING)
    pulled = plan.fit(untrained(), TRAIN, nobody, False, 0, towards, FOLLOWING)
    before, after = (f.fitted.probabilities(history)[0, 7] for f in (plain, pulled))
    assert after > 1.5 * before


def test_cross_entropy_alone_is_a_plain_loop(learned):
    base = untrained()
    base.network.double()  # so that AdamW makes no steps of rounding errors
    plan = FineTuning(learning_rate=1e-2, weight_decay=0.1, batch_size=6, max_epochs=1)
    tuned = plan.fit(base, TRAIN, VALID, False, 0)
    network = copy.deepcopy(base.network)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2, weight_decay=0.1)
    assert len(learned) > 2
    for batch in learned:
        losses = []
        for row in batch:
            for i in range(1, len(row)):
                last = network(torch.tensor([row[:i]]))[0, -1]
                scores = network.items.weight @ last + network.bias
                losses.append(torch.logsumexp(scores, 0) - scores[row[i]])
        optimizer.zero_grad()
        (sum(losses) / len(losses)).backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 5.0)
        optimizer.step()
    for name, value in tuned.fitted.network.state_dict().items():
        torch.testing.assert_close(value, network.state_dict()[name], rtol=0, atol=1e-9)
        assert not torch.equal(value, base.network.state_dict()[name]), name


def cross_entropy(network, hidden, at):
    """The plain loss, as one that is given."""
    log_p = network.logits(hidden[at.train]).log_softmax(dim=-1)
    value = -log_p.gather(1, at.labels[:, None]).mean()
    return value, {"ce": value.item()}


@pytest.mark.parametrize("loss", [None, cross_entropy])
def test_same_seed_same_bytes_whatever_the_state_of_torch_and_base_is_left_alone(loss):
    base = untrained(SASRec(hidden=8, max_length=4, dropout=0.4))
    before = state_bytes(base)

    def tuned(seed):
        return PLAN.fit(base, TRAIN, VALID, False, seed, loss, FOLLOWING)

    torch.manual_seed(5)
    state = torch.get_rng_state()
    one = tuned(1)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(6)
    two, other = tuned(1), tuned(2)
    assert state_bytes(one.fitted) == state_bytes(two.fitted)
    assert state_bytes(one.fitted) != state_bytes(other.fitted)
    assert state_bytes(base) == before
    assert not base.network.training
    assert not one.fitted.network.training
    assert all(p.grad is None for p in base.network.parameters())


def test_the_best_epoch_is_kept_and_patience_ends_training(monkeypatch):
    # Of the epochs, and at last of the base network.
    values = iter([0.1, 0.3, 0.3, 0.2, 0.5])
    monkeypatch.setattr(FittedNetwork, "ndcg", lambda *_: next(values))
    tuned = FineTuning(max_epochs=9, patience=2).fit(untrained(), TRAIN, VALID, False, 0)
    assert (tuned.fitted.epoch, tuned.epochs) == (2, 4)
    assert (tuned.ndcg, tuned.base_ndcg) == (0.3, 0.5)


def test_without_patience_all_epochs_and_without_validation_the_last(monkeypatch):
    monkeypatch.setattr(FittedNetwork, "ndcg", lambda *_: 0.1)
    tuned = FineTuning(max_epochs=4, patience=None).fit(untrained(), TRAIN, VALID, False, 0)
    assert (tuned.fitted.epoch, tuned.epochs) == (1, 4)
    nobody = VALID.take(np.arange(0))
    tuned = FineTuning(max_epochs=4, patience=1).fit(untrained(), TRAIN, nobody, False, 0)
    assert (tuned.fitted.epoch, tuned.epochs) == (4, 4)


@pytest.mark.parametrize("filter_seen", [True, False])
@pytest.mark.parametrize("tied", [True, False])
def test_ndcg_of_an_epoch_is_that_of_the_rankings(filter_seen, tied):
    rng, items = np.random.default_rng(0), 25
    fitted = untrained(items=items)
    with torch.no_grad():
        if tied:  # every history gets the biases, three different ones
            fitted.network.items.weight.zero_()
            fitted.network.bias.copy_(torch.arange(items) % 3)
        else:
            fitted.network.items.weight.mul_(9.0)
    histories = [rng.integers(items, size=rng.integers(0, 9)) for _ in range(300)]
    asked = examples([str(n) for n in range(300)], histories, rng.integers(items, size=300))
    answers = predict(fitted, asked.histories(), asked.targets, items, 10, filter_seen)
    expected = mean_ndcg(answers.positions, asked.targets)
    assert 0.05 < expected < 0.5
    assert fitted.ndcg(asked, filter_seen) == pytest.approx(expected, abs=1e-6)
    assert fitted.ndcg(asked, filter_seen, k=1) == pytest.approx(
        mean_ndcg(answers.positions[:, :1], asked.targets), abs=1e-6
    )
    assert fitted.ndcg(asked.take(np.arange(0)), filter_seen) == 0
