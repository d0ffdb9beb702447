"""A tree read at once equals its paths read alone: losses and gradients, in every family."""

import numpy as np
import pytest
import torch

from llmrec.errors import RecipeError
from llmrec.model.forward import collate, forward_logits, head_at, require_tree_support
from llmrec.model.loading import Lora, with_new_lora
from llmrec.model.softmax import branch_sums, log_probabilities
from llmrec.text.tree import Segment, TokenTree


def random_trees(count, vocabulary, seed):
    rng = np.random.default_rng(seed)

    def ids(low, high):
        return rng.integers(3, vocabulary, rng.integers(low, high)).astype(np.int32)

    trees = []
    for _ in range(count):
        segments = [Segment(ids(3, 9))]
        for _ in range(rng.integers(1, 4)):
            trunk = len(segments) - 1 if segments[-1].target < 0 else 0
            segments.append(Segment(ids(1, 4), trunk))
            segments.append(Segment(ids(1, 6), len(segments) - 1, target=1))
        trees.append(TokenTree(tuple(segments)))
    return trees


def tree_sums(model, trees):
    flats = [tree.flatten() for tree in trees]
    logits = forward_logits(model, collate(flats, [f.predictors for f in flats]))
    labels = torch.from_numpy(np.concatenate([f.labels for f in flats]).astype(np.int64))
    values, sums, begin = log_probabilities(logits, labels), [], 0
    for flat in flats:
        part = values[begin : begin + len(flat.labels)]
        sums.append(branch_sums(part, torch.from_numpy(flat.branches).long(), flat.branch_count))
        begin += len(flat.labels)
    return torch.cat(sums)


def path_sums(model, trees):
    """The same by transformers alone: one plain causal pass for each path."""
    sums = []
    for tree in trees:
        for number, segment in enumerate(tree.segments):
            if segment.target < 0:
                continue
            path, at = [segment.ids], number
            while tree.segments[at].parent >= 0:
                at = tree.segments[at].parent
                path.insert(0, tree.segments[at].ids)
            ids = torch.from_numpy(np.concatenate(path).astype(np.int64))[None]
            log_p = torch.log_softmax(model(input_ids=ids).logits[0].float(), -1)
            places = torch.arange(ids.shape[1] - len(segment.ids), ids.shape[1])
            sums.append(log_p[places - 1, ids[0, places]].sum())
    return torch.stack(sums)


def test_losses_equal_path_by_path(tiny_model):
    trees = random_trees(5, tiny_model.config.vocab_size, seed=1)
    with torch.no_grad():
        together, alone = tree_sums(tiny_model, trees), path_sums(tiny_model, trees)
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)


def test_lora_gradients_equal_path_by_path(fresh_llama):
    trees = random_trees(4, fresh_llama.config.vocab_size, seed=2)
    model = with_new_lora(fresh_llama, Lora(r=4), seed=0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:  # zero at first, which would hide the gradients of lora_A
            torch.nn.init.normal_(parameter, std=0.02)
    gradients = []
    for sums in (lambda: tree_sums(model, trees), lambda: path_sums(model, trees)):
        model.zero_grad()
        (-sums().mean()).backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.requires_grad])
    for tree, path in zip(*gradients, strict=True):
        scale = max(1.0, float(path.abs().max()))
        torch.testing.assert_close(tree / scale, path / scale, rtol=0, atol=1e-5)


def test_what_is_in_another_branch_changes_nothing(tiny_llama):
    trunk, ours = Segment(np.array([5, 6, 7], np.int32)), np.array([8, 9], np.int32)
    sums = []
    for other in ([10, 11, 12], [200, 201]):
        tree = TokenTree((trunk, Segment(np.array(other, np.int32), 0, 0), Segment(ours, 0, 1)))
        with torch.no_grad():
            sums.append(tree_sums(tiny_llama, [tree])[1])
    torch.testing.assert_close(sums[0], sums[1], rtol=0, atol=1e-5)


def test_the_head_is_computed_at_the_asked_positions_only(tiny_llama):
    ids = torch.arange(3, 13)[None].repeat(2, 1)
    with torch.no_grad():
        whole = tiny_llama(input_ids=ids).logits
        with head_at(tiny_llama, torch.tensor([4, 17])):
            some = tiny_llama(input_ids=ids).logits
        after = tiny_llama(input_ids=ids).logits
    assert some.shape == (1, 2, tiny_llama.config.vocab_size)
    torch.testing.assert_close(some[0], torch.stack([whole[0, 4], whole[1, 7]]))
    assert torch.equal(after, whole)  # nothing is left behind


def test_models_that_cannot_read_a_tree_are_refused(tiny_llama):
    class Config:
        model_type = "made up"

    class Model(torch.nn.Module):
        def forward(self, input_ids, position_ids):
            return input_ids

    model = Model()
    model.config = Config()
    require_tree_support(model, 10_000)
    model.config.layer_types = ["full_attention", "linear_attention"]
    with pytest.raises(RecipeError, match="linear_attention"):
        require_tree_support(model, 10)
    model.config.layer_types = ["full_attention", "sliding_attention"]
    model.config.sliding_window = 64
    require_tree_support(model, 64)
    with pytest.raises(RecipeError, match="sliding window of 64"):
        require_tree_support(model, 65)
    with pytest.raises(RecipeError, match="at most 512"):
        require_tree_support(tiny_llama, 513)
