"""Counts where the host would wait for a GPU, on a machine that has none.

What the model computes, and what is moved to its device, is followed from operation to operation;
a wait is whatever brings a value of it back: `.item()`, `.cpu()`, `.tolist()`, a branch on it, or
an operation whose result's size depends on it.
"""

from contextlib import contextmanager
from unittest.mock import patch

import torch
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: PLC2701
from torch.utils._pytree import tree_flatten  # noqa: PLC2701
from torch.utils.weak import WeakTensorKeyDictionary

_OF_UNKNOWN_SIZE = {"nonzero", "masked_select", "unique_consecutive", "_unique2", "unique_dim"}


class Waits(TorchDispatchMode):
    """`count` of waits so far, and `places`, the innermost lines of llmrec that made them."""

    def __init__(self, model):
        super().__init__()
        self._there = WeakTensorKeyDictionary()
        for tensor in (*model.parameters(), *model.buffers()):
            self.moved(tensor)
        self.places = []

    @property
    def count(self):
        return len(self.places)

    def moved(self, tensor):
        """Note that a tensor is on the device."""
        if isinstance(tensor, torch.Tensor):
            self._there[tensor] = True
        return tensor

    def is_there(self, tensor):
        return isinstance(tensor, torch.Tensor) and tensor in self._there

    def wait(self):
        import traceback

        lines = [f for f in traceback.extract_stack() if "/llmrec/" in f.filename]
        where = lines[-1] if lines else traceback.extract_stack()[-3]
        self.places.append(f"{where.filename.rsplit('/', 2)[-1]}:{where.lineno} {where.line}")

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        tensors = [t for t in tree_flatten((args, kwargs))[0] if self.is_there(t)]
        if not tensors:
            return result
        name = func.overloadpacket.__name__
        by_truth = name == "index" and any(
            t.dtype in (torch.bool, torch.uint8) for t in tensors[1:]
        )
        if name == "_local_scalar_dense" or name in _OF_UNKNOWN_SIZE or by_truth:
            self.wait()
        for one in tree_flatten(result)[0]:
            self.moved(one)
        return result


@contextmanager
def waits_of(model):
    """While open, counts the waits for what `model` computes."""
    counted = Waits(model)
    real = {name: getattr(torch.Tensor, name) for name in ("cpu", "tolist", "numpy", "to")}

    def brought(name):
        def bring(self, *args, **named):
            if not counted.is_there(self):
                return real[name](self, *args, **named)
            counted.wait()
            with _off():
                here = self.detach().clone() if name == "cpu" else self.detach()
                return here if name == "cpu" else real[name](here, *args, **named)

        return bring

    def to(self, *args, **named):
        found = real["to"](self, *args, **named)
        target = [*args, *named.values()]
        if any(isinstance(one, str | torch.device) for one in target):
            if found is self and not counted.is_there(self):
                with _off():
                    found = self.detach().clone()
            counted.moved(found)
        return found

    made = torch.tensor

    def tensor(*args, device=None, **named):
        found = made(*args, device=device, **named)
        return counted.moved(found) if device is not None else found

    patches = [
        patch.object(torch.Tensor, name, brought(name)) for name in ("cpu", "tolist", "numpy")
    ]
    patches += [patch.object(torch.Tensor, "to", to), patch.object(torch, "tensor", tensor)]
    with counted:
        for one in patches:
            one.start()
        try:
            yield counted
        finally:
            for one in patches:
                one.stop()


def _off():
    return torch.utils._python_dispatch._disable_current_modes()
