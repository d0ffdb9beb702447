"""A device that is none: tensors said to be on `sim:0`, whose values a CPU holds.

As on a GPU, an operation refuses tensors of two devices, but for single numbers, indices and
copies; so what forgets to move a tensor, or to bring one back, is found on a machine without a GPU.
"""

import os
from contextlib import ExitStack, contextmanager
from unittest.mock import patch

import torch
from accelerate.state import AcceleratorState
from peft.utils import get_peft_model_state_dict as STATE
from torch.overrides import TorchFunctionMode
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: PLC2701
from torch.utils._pytree import tree_flatten, tree_map  # noqa: PLC2701

from llmrec.baselines import network_tuning, sequential
from llmrec.methods import networks

DEVICE = "sim:0"
_COPIES = {"copy_", "_to_copy", "to"}
_BY_INDEX = {"index", "_unsafe_index", "index_put", "index_put_", "_index_put_impl_"}
_WHERE_NETWORKS_GO = (network_tuning, networks, sequential)
_MADE = (torch.tensor, torch.as_tensor, torch.asarray)

backend_registration._setup_privateuseone_for_python_backend("sim")


class Elsewhere(torch.Tensor):
    """A tensor on the device; `raw` has its values."""

    @staticmethod
    def __new__(cls, raw):
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            raw.shape,
            strides=raw.stride(),
            storage_offset=raw.storage_offset(),
            dtype=raw.dtype,
            device=DEVICE,
        )
        made.raw = raw
        return made

    @classmethod
    def __torch_dispatch__(cls, op, types, args=(), kwargs=None):
        return computed(op, args, kwargs or {})

    def __repr__(self):
        return f"Elsewhere({self.raw})"


def is_there(device):
    return device is not None and torch.device(device).type == "sim"


def computed(op, args, kwargs):
    """What the operation gives, on the device where it is done there."""
    name, given = op.overloadpacket.__name__, tree_flatten((args, kwargs))[0]
    tensors = [one for one in given if isinstance(one, torch.Tensor)]
    devices = [one for one in given if isinstance(one, torch.device)]
    there = [one for one in tensors if isinstance(one, Elsewhere)]
    if there and name not in _COPIES:
        others = [one for one in tensors if not isinstance(one, Elsewhere) and one.dim()]
        if name in _BY_INDEX:
            others = [one for one in args[:1] if not isinstance(one, Elsewhere)]
        if others:
            raise RuntimeError(f"{op} was given tensors of two devices, {DEVICE} and cpu")
    if devices:
        done_there = is_there(devices[0])
    else:
        done_there = isinstance(args[0], Elsewhere) if name in _COPIES else bool(there)

    def raw(one):
        if isinstance(one, torch.device):
            return torch.device("cpu")
        return one.raw if isinstance(one, Elsewhere) else one

    found = op(*tree_map(raw, args), **tree_map(raw, kwargs))
    changed = {id(raw(one)): one for one in tensors} if op._schema.is_mutable else {}

    def said(one):
        if not isinstance(one, torch.Tensor):
            return one
        if id(one) in changed:
            return changed[id(one)]
        return Elsewhere(one) if done_there else one

    return tree_map(said, found)


class _Operations(TorchDispatchMode):
    """Every operation, those that make tensors too; `done`: how many gave one on the device."""

    def __init__(self):
        super().__init__()
        self.done = [0]

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        found = computed(op, args, kwargs or {})
        self.done[0] += isinstance(found, Elsewhere)
        return found


class _Making(TorchFunctionMode):
    """Tensors made of numbers, and numbers made of tensors, which no operation tells of."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if func is torch.Tensor.tolist and isinstance(args[0], Elsewhere):
            return args[0].raw.tolist()
        if func in _MADE and is_there(kwargs.get("device")):
            device = kwargs.pop("device")
            return func(*args, **kwargs).to(device)
        return func(*args, **kwargs)


def _weights_here(model, *args, **kwargs):
    """An adapter's weights as they are written; a file has no place for these tensors' storage."""
    return {name: weight.cpu() for name, weight in STATE(model, *args, **kwargs).items()}


@contextmanager
def elsewhere():
    """While open, `.to("sim")` and `device="sim"` work, and what asks for a GPU gets this one.

    Yields a list of one number: how many tensors were made there.
    """
    trained = patch.dict(os.environ, {"ACCELERATE_TORCH_DEVICE": DEVICE})
    AcceleratorState._reset_state(reset_partial_state=True)
    try:
        with ExitStack() as open_now:
            open_now.enter_context(patch("llmrec.model.loading.default_device", lambda: DEVICE))
            for place in _WHERE_NETWORKS_GO:
                there = patch.object(place, "default_device", lambda: torch.device(DEVICE))
                open_now.enter_context(there)
            open_now.enter_context(trained)
            open_now.enter_context(
                patch("peft.peft_model.get_peft_model_state_dict", _weights_here)
            )
            open_now.enter_context(_Making())
            yield open_now.enter_context(_Operations()).done
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)
