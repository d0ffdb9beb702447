"""What is done before an optimiser step: a gradient that is no number stops the run."""

from types import SimpleNamespace

import pytest
import torch

from llmrec.errors import LlmrecError
from llmrec.model.callbacks import Finite


def model_with(*gradients):
    """Parameters called 0, 1, ... with these gradients; None: it has none."""
    model = torch.nn.ParameterList()
    for gradient in gradients:
        size = torch.zeros(3, 2) if gradient is None else torch.zeros_like(gradient)
        model.append(torch.nn.Parameter(size))
        model[-1].grad = gradient
    return model


def before_step(model):
    state = SimpleNamespace(global_step=4)
    Finite(lambda: []).on_pre_optimizer_step(None, state, None, model=model)


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_one_wrong_number_stops_the_step_and_its_parameter_is_named(wrong, dtype):
    gradient = torch.ones(3, 2, dtype=dtype)
    gradient[1, 1] = wrong
    model = model_with(torch.ones(5), None, gradient, torch.ones(2, 2, dtype=torch.bfloat16))
    with pytest.raises(LlmrecError, match=r"the gradient of 2 is not finite at step 5"):
        before_step(model)


def test_large_gradients_and_none_at_all_pass():
    before_step(model_with(torch.full((4, 4), 6e4, dtype=torch.float16), torch.full((2,), 1e30)))
    before_step(model_with(None, None))


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_a_norm_that_an_engine_tells_stops_the_run_too(wrong):
    state = SimpleNamespace(global_step=4)
    Finite(list, lambda: 3.0).on_pre_optimizer_step(None, state, None)
    with pytest.raises(LlmrecError, match="all weights is not finite at step 5; the last checkp"):
        Finite(list, lambda: wrong).on_pre_optimizer_step(None, state, None)
