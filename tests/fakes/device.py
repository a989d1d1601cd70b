"""A device that is none: tensors that say they are on it lie in host memory, and reads of their values are counted.

Its name is ``meta``, the one device beside the CPU that every build of torch knows and runs backward passes for. An operation
that mixes its tensors with those of the host fails as on a GPU, and what would make the host wait on a GPU is noted: values
read one by one or as lists, shapes that follow from values (``nonzero``, masks as indices, ``unique``), copies to host memory,
and copies from host memory that was not pinned.
"""

import contextlib
from unittest import mock

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_map

DEVICE = torch.device("meta")
aten = torch.ops.aten
SHAPED = {aten.nonzero.default, aten.masked_select.default, aten._unique2.default, aten.unique_dim.default}
READ = {aten._local_scalar_dense.default, aten.is_nonzero.default, aten.equal.default}
INDEXED = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default}


COUNTING = []
"""The devices that are there, the newest last."""


class OnDevice(torch.Tensor):
    """A tensor of the device, with its values in `inner`."""

    @staticmethod
    def __new__(cls, inner):
        return torch.Tensor._make_wrapper_subclass(
            cls, inner.size(), strides=inner.stride(), storage_offset=inner.storage_offset(), dtype=inner.dtype,
            layout=inner.layout, device=DEVICE, requires_grad=inner.requires_grad,
        )  # fmt: skip

    def __init__(self, inner):
        self.inner = inner.detach()

    def __repr__(self):
        return f"OnDevice({tuple(self.shape)})"

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        raise RuntimeError(f"{func} outside the block in which the device is there")

    def tolist(self):
        """A read that torch refuses for such tensors."""
        COUNTING[-1].waits.append("a list of values")
        return self.inner.tolist()

    __torch_function__ = torch._C._disabled_torch_function_impl


class Device(TorchDispatchMode):
    """While it is on, the device works; `waits` names what the host waited for."""

    def __init__(self):
        super().__init__()
        self.waits, self.pinned = [], []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        tensors = [t for t in torch.utils._pytree.tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
        ours = [t for t in tensors if isinstance(t, OnDevice)]
        target = kwargs.get("device")
        if func is aten._fused_sdp_choice.default:
            return 0  # the plain way, which is made of operations that are seen here
        to_ours = target is not None and torch.device(target).type == DEVICE.type
        if not ours and not to_ours:
            return func(*args, **kwargs)
        self._note(func, args, kwargs, ours, to_ours)
        if target is not None:
            kwargs["device"] = torch.device("cpu")
        stays = ours and (target is None or to_ours)
        host = [t for t in tensors if not isinstance(t, OnDevice) and t.dim() and not to_ours]
        if stays and host and func is not aten.copy_.default:
            raise RuntimeError(f"{func}: tensors on two devices")
        inner_args, inner_kwargs = tree_map(_inner, (args, kwargs))
        if func is aten.detach.default and not isinstance(args[0], OnDevice):
            return func(*args, **kwargs)
        out = func(*inner_args, **inner_kwargs)
        if to_ours and not ours:
            out = tree_map(lambda t: t.clone() if isinstance(t, torch.Tensor) else t, out)
        if func in READ or not (stays or to_ours):
            return out
        out = tree_map(lambda t: OnDevice(t) if isinstance(t, torch.Tensor) else t, out)
        return return_and_correct_aliasing(func, args, kwargs, out)

    def _note(self, func, args, kwargs, ours, to_ours):
        if func in READ or func in SHAPED:
            self.waits.append(str(func))
        if func in INDEXED and any(i is not None and i.dtype in (torch.bool, torch.uint8) for i in args[1]):
            self.waits.append(f"{func} by a mask")
        if func is aten._to_copy.default and kwargs.get("device") is not None and bool(ours) != to_ours:
            pinned = any(args[0] is t for t in self.pinned)
            if ours:
                self.waits.append("a copy to host memory")
            elif not (pinned and kwargs.get("non_blocking")):
                self.waits.append(f"a copy of {tuple(args[0].shape)} that is not pinned")
        if func is aten.copy_.default and not isinstance(args[0], OnDevice):
            self.waits.append("a copy to host memory")


def _inner(value):
    return value.inner if isinstance(value, OnDevice) else value


@contextlib.contextmanager
def device():
    """A block in which the device is there; models made in it are moved by `moved`."""
    made = Device()

    def pin_memory(tensor, *args):
        out = tensor.clone()
        made.pinned.append(out)
        return out

    with contextlib.ExitStack() as stack:
        patches = [
            mock.patch.object(torch.Tensor, "pin_memory", pin_memory),
            mock.patch.object(torch, "is_autocast_enabled", lambda *args: False),
            mock.patch.object(torch, "autocast", lambda *args, **kwargs: contextlib.nullcontext()),
            mock.patch("torch.optim.adam._device_dtype_check_for_fused", lambda *args, **kwargs: None),
            mock.patch("mcit.engine.optim.FUSED", frozenset({DEVICE.type})),
        ]
        for patch in patches:
            stack.enter_context(patch)
        stack.enter_context(made)
        COUNTING.append(made)
        stack.callback(COUNTING.pop)
        yield made


def moved(model):
    """The model with its parameters and buffers on the device."""
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[name] = nn.Parameter(OnDevice(parameter.data), requires_grad=parameter.requires_grad)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = OnDevice(buffer)
    return model
