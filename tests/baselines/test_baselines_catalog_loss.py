"""The loss over the catalog: values and gradients of the plain formula, whatever the pieces."""

import pytest
import torch

from llmrec.baselines import catalog_loss
from llmrec.baselines.catalog_loss import CatalogLoss


@pytest.mark.parametrize("cells", [1, 30, 1000])
@pytest.mark.parametrize("scale", [1.0, 60.0])
def test_equals_the_plain_formula_with_its_gradients(monkeypatch, cells, scale):
    monkeypatch.setattr(catalog_loss, "CELLS", cells)
    torch.manual_seed(0)
    shapes = ((7, 5), (11, 5), (11,))
    ours = [(scale * torch.randn(*shape, dtype=torch.float64)).requires_grad_() for shape in shapes]
    plain = [tensor.detach().clone().requires_grad_() for tensor in ours]
    labels = torch.tensor([0, 10, 3, 3, 7, 1, 0])
    found = CatalogLoss.apply(*ours, labels)
    hidden, weight, bias = plain
    scores = hidden @ weight.T + bias
    expected = sum(torch.logsumexp(s, 0) - s[n] for s, n in zip(scores, labels, strict=True))
    assert found.item() == pytest.approx(expected.item(), rel=1e-12)
    (3.0 * found).backward()
    (3.0 * expected).backward()
    for mine, theirs in zip(ours, plain, strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-9, atol=1e-9)
