"""The loss of a step over candidates: read together or in parts, it is the same."""

from math import log2

import numpy as np
import pytest
import torch

from llmrec.model.group_losses import GroupLoss
from llmrec.model.losses import ConformalLoss, DPOLoss, ListwiseLoss, Loss, SDPOLoss
from llmrec.model.row_order import FILLER, RowOrder
from llmrec.model.set_losses import log_threshold, set_distance, set_size
from llmrec.model.softmax import FullSoftmax, MaskedSoftmax
from llmrec.text.rows import Views, with_candidates
from llmrec.text.tree import Segment, TokenTree
from llmrec.text.trie import TitleTrie

COMPLETIONS = [
    np.array(ids, np.int32)
    for ids in (
        [5, 6, 1],
        [5, 7, 8, 1],
        [9, 1],
        [9, 6, 5, 1],
        [5, 6, 9, 1],
        [7, 1],
        [8, 8, 1],
        [6, 5, 1],
    )
]
TRIE = TitleTrie.from_sequences(COMPLETIONS)
VECTORS = torch.randn(8, 3, generator=torch.Generator().manual_seed(3))
SMOOTH, HARD = 0.7, None
WEIGHTS = torch.tensor([1.0, 3.0, 0.5, 2.0, 7.0, 1.5, 4.0, 0.25])  # of the items
SIZE = 4  # candidates of a view


def rows(count, seed=0):
    """Rows of two views over random tokens, of clearly different lengths."""
    rng = np.random.default_rng(seed)
    made = []
    for number in range(count):
        views = Views(*(rng.integers(10, 60, 3 + 2 * number).astype(np.int32) for _ in range(3)))
        first, second = (rng.permutation(8)[:SIZE].tolist() for _ in range(2))
        made.append(with_candidates(views, COMPLETIONS, first, second))
    return made


def softmax(name="sft", tau=1.0):
    return MaskedSoftmax(TRIE, COMPLETIONS, tau) if name == "msl" else FullSoftmax()


def conformal(name="sft", temperature=SMOOTH, tau=1.0, **settings):
    given = {"alpha": 0.4, "beta": 2.0, "gamma": 3.0, "nearest": 2, "vectors": VECTORS} | settings
    return ConformalLoss(softmax(name, tau), temperature=temperature, **given)


def read_alone(model, asked, row):
    """(2C,) log-probabilities of a row's branches, a forward pass for each path."""
    values = []
    for path in row.paths():
        prompt = np.concatenate([row.segments[i].ids for i in path[:-1]]).tolist()
        answer = row.segments[path[-1]].ids.tolist()
        logits = model(torch.tensor([[*prompt, *answer]])).logits[0, len(prompt) - 1 : -1].float()
        total = 0.0
        for step, token in enumerate(answer):
            z = logits[step]
            if isinstance(asked.softmax, MaskedSoftmax):
                allowed = TRIE.allowed(np.array(answer[:step], np.int32)).tolist()
                total = total + z[token] / asked.softmax.tau
                total = total - (z[allowed] / asked.softmax.tau).logsumexp(0)
            else:
                total = total + z.log_softmax(0)[token]
        values.append(total)
    return torch.stack(values)


def plain_loss(asked, values, items):
    """The loss of all examples at once, from its definition."""
    truth = torch.stack([v[0] - v[:SIZE].logsumexp(0) for v in values])
    log_p = torch.stack([v[SIZE:] - v[SIZE:].logsumexp(0) for v in values])
    eta = log_threshold(truth, asked.alpha, asked.temperature)
    loss = -sum(v[0] for v in values) / len(values)
    loss = loss + asked.beta * set_size(log_p, eta, asked.temperature)
    unit = VECTORS / VECTORS.norm(dim=1, keepdim=True)
    alike = torch.tensor([[float(unit[row[0]] @ unit[i]) for i in row[SIZE:]] for row in items])
    label = torch.tensor([[i == row[0] for i in row[SIZE:]] for row in items])
    return loss + asked.gamma * set_distance(
        log_p, eta, alike, label, asked.nearest, asked.temperature
    )


def items_of(row):
    return [segment.target for segment in row.segments if segment.target >= 0]


def gradient_of(model, loss):
    model.zero_grad()
    loss.backward()
    return torch.cat([p.grad.flatten() for p in model.parameters()])


class Alone:
    process_index, num_processes = 0, 1


class OneOfTwo:
    """Gathers what the first and the second process hold, which is known beforehand."""

    num_processes = 2

    def __init__(self, index, parts):
        self.process_index, self._parts = index, iter(parts)

    def gather(self, mine):
        both = next(self._parts)
        torch.testing.assert_close(mine, both[self.process_index])
        return torch.cat(both)


def batch_of(asked, some, numbers):
    """What the trainer's `_batch` gives."""
    batch = asked.prepare([row.flatten() for row in some])
    real = (
        (torch.tensor(numbers) != FILLER).float().repeat_interleave(some[0].flatten().branch_count)
    )
    return {**batch, "weights": torch.tensor(asked.kind_weights)[batch["kinds"]] * real}


def by_parts(model, asked, batches, accelerator, targets):
    """The loss and the gradient of a process: read twice, learned batch by batch."""
    with torch.no_grad():
        read = [asked.read(model, batch) for batch in batches]
    told = asked.weigh(batches, read, accelerator)
    model.zero_grad()
    total = 0.0
    for batch in batches:
        values = asked.softmax.branch_log_probabilities(model, batch)
        loss = batch["offset"] - (values * batch["weights"]).sum() / targets
        loss.backward()
        total += float(loss.detach())
    return told, total, torch.cat([p.grad.flatten() for p in model.parameters()])


@pytest.mark.parametrize("name", ["sft", "msl"])
def test_both_views_in_one_tree_are_read_as_each_path_alone(tiny_model, name):
    asked, some = conformal(name, tau=1.5), rows(3)
    batch = asked.prepare([row.flatten() for row in some])
    assert batch["items"].tolist() == [items_of(row) for row in some]
    with torch.no_grad():
        together = asked.softmax.branch_log_probabilities(tiny_model, batch).reshape(3, -1)
        alone = torch.stack([read_alone(tiny_model, asked, row) for row in some])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-4)
    assert float(together.std()) > 0.1


@pytest.mark.parametrize("name", ["sft", "msl"])
@pytest.mark.parametrize("temperature", [SMOOTH, HARD])
def test_every_cut_of_a_step_gives_the_loss_and_gradient_of_the_whole(
    tiny_llama, name, temperature
):
    asked, some = conformal(name, temperature), rows(4)
    whole = plain_loss(
        asked, [read_alone(tiny_llama, asked, row) for row in some], [items_of(row) for row in some]
    )
    expected, loss = gradient_of(tiny_llama, whole), float(whole.detach())
    scale = float(expected.abs().max())
    assert scale > 1e-3
    for size in (1, 2, 3, 4):
        cut = [range(4)[i : i + size] for i in range(0, 4, size)]
        batches = [batch_of(asked, [some[n] for n in numbers], numbers) for numbers in cut]
        told, total, gradient = by_parts(tiny_llama, asked, batches, Alone, 4)
        assert total == pytest.approx(loss, rel=1e-5)
        assert told["cross_entropy"] + 2 * told["set_size"] + 3 * told[
            "set_distance"
        ] == pytest.approx(loss, rel=1e-5)
        torch.testing.assert_close(gradient / scale, expected / scale, rtol=0, atol=1e-5)


@pytest.mark.parametrize("temperature", [SMOOTH, HARD])
def test_two_processes_and_a_filler_give_the_loss_and_gradient_of_one(tiny_llama, temperature):
    asked, some = conformal("msl", temperature), rows(3)
    whole = plain_loss(
        asked, [read_alone(tiny_llama, asked, row) for row in some], [items_of(row) for row in some]
    )
    expected, loss = gradient_of(tiny_llama, whole), float(whole.detach())
    held = [[0, 1], [2, FILLER]]
    batches = [[batch_of(asked, [some[n]], [n]) for n in mine] for mine in held]
    with torch.no_grad():
        values = [
            torch.stack(
                [asked.read(tiny_llama, batch) for batch in mine]
            )  # a row each, no reference
            for mine in batches
        ]
    real = [torch.tensor([n != FILLER for n in mine]) for mine in held]
    items = [torch.cat([b["items"] for b in mine]) for mine in batches]
    found = [
        by_parts(tiny_llama, asked, mine, OneOfTwo(index, [values, real, items]), 3)
        for index, mine in enumerate(batches)
    ]
    assert found[0][1] + found[1][1] == pytest.approx(loss, rel=1e-5)
    scale = float(expected.abs().max())
    gradient = found[0][2] + found[1][2]
    torch.testing.assert_close(gradient / scale, expected / scale, rtol=0, atol=1e-5)


def test_the_distance_of_hard_sets_has_a_value_and_no_gradient(tiny_llama):
    """The vectors are fixed; smooth sets carry a gradient to the weights."""
    some = rows(4)
    values = torch.stack([read_alone(tiny_llama, conformal(), row) for row in some]).detach()
    items = torch.tensor([items_of(row) for row in some])
    for temperature, moves in ((HARD, False), (SMOOTH, True)):
        leaf = values.double().requires_grad_()
        loss = conformal(temperature=temperature, beta=0.0, alpha=0.9).step_loss(leaf, items)
        assert float(loss.parts["set_distance"].detach()) > 0
        [gradient] = torch.autograd.grad(
            loss.total - loss.parts["cross_entropy"],
            leaf,
            allow_unused=True,
            materialize_grads=True,
        )
        assert bool(gradient.abs().max() > 1e-6) is moves


def test_rows_of_another_form_are_refused():
    asked, some = conformal(), rows(2)
    plain = TokenTree((Segment(COMPLETIONS[0]), Segment(COMPLETIONS[1], 0, 1)))
    with pytest.raises(ValueError, match="equally many"):
        asked.prepare([some[0].flatten(), plain.flatten()])
    with pytest.raises(ValueError, match="vectors"):
        conformal(vectors=None)
    assert (
        float(
            conformal(vectors=None, gamma=0.0)
            .step_loss(torch.randn(2, 8), torch.zeros(2, 8, dtype=torch.long))
            .parts["set_distance"]
        )
        == 0
    )


def drawn_items(rng, again):
    items = rng.permutation(8)[:SIZE]
    items[2] = items[0] if again else items[2]
    return items


def rewarded(values, items):
    """The loss of groups behind targets, a row after the other, from its definition."""
    total, discounts = 0.0, [1 / log2(i + 2) for i in range(SIZE)]
    for v, i in zip(values, items, strict=True):
        hits = [float(item == i[0]) for item in i[1:]]
        miss = [-d / sum(discounts[: len(hits)]) for d in discounts]
        rewards = [hit or miss[place] for place, hit in enumerate(hits)]
        advantage = (torch.tensor(rewards) - np.mean(rewards)) / np.std(rewards)
        lead = -(torch.tensor(i[1:]) ** 1.5) - v[1:]
        total = total - (advantage * (v[1:] - v[1:].detach()).exp()).mean() / 3
        total = total + 0.3 * (lead.exp() - lead - 1).mean() / 3
    return total


def listed(count, again=False):
    """Rows of one prompt, a target and three other titles behind it; `again`: it is one of them."""
    rng = np.random.default_rng(1)
    made = []
    for number in range(count):
        prompt = Segment(rng.integers(10, 60, 4 + 3 * number).astype(np.int32))
        some = [
            Segment(COMPLETIONS[item], 0, int(item), kind=min(place, 1))
            for place, item in enumerate(drawn_items(rng, again))
        ]
        made.append(TokenTree((prompt, *some)))
    return made


def elsewhere(model, batch):
    """Log-probabilities of another model: told by the item, whatever the row."""
    return -(batch["items"].flatten().float() ** 1.5)


@pytest.mark.parametrize(
    ("loss", "plain"),
    [
        (
            ListwiseLoss(softmax("msl"), tau=2.0),
            lambda values, items: sum((v / 2).logsumexp(0) - v[0] / 2 for v in values) / 3,
        ),
        (
            ListwiseLoss(softmax(), importance=WEIGHTS),
            lambda values, items: (
                sum(
                    WEIGHTS[i[0]] * (v.logsumexp(0) - v[0])
                    for v, i in zip(values, items, strict=True)
                )
                / sum(WEIGHTS[i[0]] for i in items)
            ),
        ),
        (
            SDPOLoss(softmax(), beta=0.3, reference=elsewhere),
            lambda values, items: (
                sum(
                    -torch.nn.functional.logsigmoid(
                        -sum(
                            (0.3 * (v[j] + i[j] ** 1.5 - v[0] - i[0] ** 1.5)).exp()
                            for j in range(1, SIZE)
                        ).log()
                    )
                    for v, i in zip(values, items, strict=True)
                )
                / 3
            ),
        ),
        (
            DPOLoss(softmax("msl"), beta=0.3, reference=elsewhere),
            lambda values, items: sum(
                (1 + (0.3 * (v[j] + i[j] ** 1.5 - v[0] - i[0] ** 1.5)).exp()).log() / 9
                for v, i in zip(values, items, strict=True)
                for j in range(1, SIZE)
            ),
        ),
        (GroupLoss(softmax(), beta=0.3, reference=elsewhere), rewarded),
    ],
    ids=["listwise", "by_propensity", "sdpo", "dpo", "rewards"],
)
def test_a_loss_over_the_whole_step_is_one_object(tiny_llama, loss, plain):
    """Read in two passes, however the step is cut, it is what its definition gives in one."""
    some = listed(3, again=isinstance(loss, GroupLoss))
    alone = [read_alone(tiny_llama, loss, row) for row in some]
    whole = plain(alone, [items_of(row) for row in some])
    expected, total = gradient_of(tiny_llama, whole), float(whole.detach())
    scale = float(expected.abs().max())
    assert scale > 1e-3
    for cut in ([[0, 1, 2]], [[0], [1, 2]]):
        batches = [batch_of(loss, [some[n] for n in numbers], numbers) for numbers in cut]
        _, found, gradient = by_parts(tiny_llama, loss, batches, Alone, 3)
        assert found == pytest.approx(total, rel=1e-5)
        torch.testing.assert_close(gradient / scale, expected / scale, rtol=0, atol=1e-5)


@pytest.mark.parametrize("beta", [0.1, 1.0])
def test_s_dpo_with_one_negative_is_dpo(beta):
    values = torch.randn(5, 2, generator=torch.Generator().manual_seed(0)).double() * 4
    known = values.flip(0) - 1
    for reference in (None, known):
        leaves = [values.clone().requires_grad_() for _ in range(2)]
        losses = [
            kind(softmax(), beta=beta).of_rows(leaf, reference)
            for kind, leaf in zip((DPOLoss, SDPOLoss), leaves, strict=True)
        ]
        torch.testing.assert_close(losses[0], losses[1], rtol=1e-12, atol=0)
        gradients = [
            torch.autograd.grad(loss.sum(), leaf)[0]
            for loss, leaf in zip(losses, leaves, strict=True)
        ]
        torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-12, atol=0)
        assert gradients[0].abs().min() > 0
    unlike = torch.randn(5, 3).double()
    apart, at_once = (kind(softmax()).of_rows(unlike, None) for kind in (DPOLoss, SDPOLoss))
    assert (apart < at_once).all()


def test_listwise_over_the_whole_catalog_is_the_normalised_likelihood(tiny_llama):
    """Candidates that are all titles: the exact likelihood among them, of value and gradient.

    Under the softmax over what continues a title, which is normalised over the catalog already, it
    is the likelihood itself.
    """
    prompt = Segment(np.array([11, 12, 13], np.int32))
    order = [3, 0, 1, 2, 4, 5, 6, 7]
    branches = [Segment(COMPLETIONS[i], 0, i, kind=min(n, 1)) for n, i in enumerate(order)]
    row = TokenTree((prompt, *branches))
    for name in ("sft", "msl"):
        loss = ListwiseLoss(softmax(name))
        alone = read_alone(tiny_llama, loss, row)
        whole = alone.logsumexp(0) - alone[0]
        if name == "msl":
            assert float(alone.logsumexp(0).detach()) == pytest.approx(0, abs=1e-5)
        expected, total = gradient_of(tiny_llama, whole), float(whole.detach())
        _, found, gradient = by_parts(tiny_llama, loss, [batch_of(loss, [row], [0])], Alone, 1)
        assert found == pytest.approx(total, rel=1e-5)
        scale = float(expected.abs().max())
        torch.testing.assert_close(gradient / scale, expected / scale, rtol=0, atol=1e-5)


def test_plain_targets_weigh_by_their_importance():
    rows = [row.flatten() for row in listed(2)]
    batch = Loss(softmax(), importance=WEIGHTS).prepare(rows)
    items = [item for row in listed(2) for item in items_of(row)]
    assert batch["importance"].tolist() == WEIGHTS[items].tolist()
    assert "importance" not in Loss(softmax()).prepare(rows)
    assert "importance" not in ListwiseLoss(softmax(), importance=WEIGHTS).prepare(rows)


@pytest.mark.parametrize(("count", "size"), [(10, 1), (10, 2), (11, 4), (8, 4), (3, 4)])
def test_coming_rows_are_those_that_the_steps_read(count, size):
    group = 4
    order = RowOrder(range(5, 5 + count), group, size, seed=1)
    steps = []
    for epoch in range(4):
        order.epoch = epoch
        read = [number for number, _ in order]
        steps += [read[i : i + group] for i in range(0, len(read), group)]
    for step in range(5):
        for ahead in (1, 2, 3, 5):
            if step + ahead > len(steps):
                continue
            wanted = sorted({n for one in steps[step : step + ahead] for n in one} - {FILLER})
            found = order.coming(step, ahead)
            assert sorted(found) == wanted
            order.epoch = 0  # nothing hangs on the epoch that is being read
            assert order.coming(step, ahead) == found


def test_an_order_begins_with_the_weights_it_is_given():
    order = RowOrder([7, 7], group=1, size=1, seed=0, weights=(1.0, 0.0, 0.0))
    assert sorted(order) == [(0, (1.0, 0.0, 0.0)), (1, (1.0, 0.0, 0.0))]
