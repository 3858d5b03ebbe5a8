"""A second device made of the CPU: its tensors compute on the CPU, and refuse to mix with the CPU's, as a GPU's do.

    with second_device():
        engine = StyleEngine(folder, device=NAME)

Within the context, new tensors can be placed on the device, and networks and tensors moved to it. An operation on
tensors of both devices raises RuntimeError. As with CUDA, CPU tensors without dimensions are accepted next to the
device's, and so are index tensors on the CPU. NumPy cannot read the device's tensors.
"""

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend

NAME = "second"
aten: Any = torch.ops.aten
INDEXING = (aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._unsafe_index.Tensor)
MATH_KERNEL = 0  # of torch.nn.attention.SDPBackend


class SecondDeviceTensor(torch.Tensor):
    """A tensor on the device. `inner` has its values on the CPU."""

    inner: torch.Tensor

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> "SecondDeviceTensor":
        made: Any = torch.Tensor._make_wrapper_subclass(
            cls,
            inner.shape,
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=torch.device(NAME, 0),
        )
        made.inner = inner
        return made

    def __repr__(self, *, tensor_contents: Any = None) -> str:
        return f"SecondDeviceTensor({self.inner})"

    def tolist(self) -> Any:
        return self.inner.tolist()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _call(func, args, kwargs or {})


class _NewTensors(TorchDispatchMode):
    """Passes all operations through `_call`, also those that create tensors."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _call(func, args, kwargs or {})


class _Backend(_DummyBackendModule):
    """What torch asks of a device's module."""

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.float16, torch.bfloat16]


@functools.cache
def _register() -> torch.library.Library:
    """Registers the device, once per process, with the three operations that torch calls without dispatching."""
    _setup_privateuseone_for_python_backend(NAME, _Backend())
    library = torch.library.Library("aten", "IMPL")

    def empty_strided(size: Any, stride: Any, *, dtype: Any = None, **options: Any) -> torch.Tensor:
        return SecondDeviceTensor(torch.empty_strided(size, stride, dtype=dtype))

    def empty(size: Any, *, dtype: Any = None, **options: Any) -> torch.Tensor:
        return SecondDeviceTensor(torch.empty(size, dtype=dtype))

    def copy_from(source: torch.Tensor, target: torch.Tensor, non_blocking: bool = False) -> torch.Tensor:
        _inner(target).copy_(_inner(source))
        return target

    library.impl("empty_strided", empty_strided, "PrivateUse1")
    library.impl("empty.memory_format", empty, "PrivateUse1")
    library.impl("_copy_from", copy_from, "PrivateUse1")
    return library


@contextmanager
def second_device() -> Iterator[None]:
    """Within the context the device can be used."""
    _register()
    with _NewTensors():
        yield


def _is_second(device: Any) -> bool:
    return device is not None and torch.device(device).type == NAME


def _inner(value: Any) -> Any:
    return value.inner if isinstance(value, SecondDeviceTensor) else value


def _outer(value: Any) -> Any:
    is_plain = isinstance(value, torch.Tensor) and not isinstance(value, SecondDeviceTensor)
    return SecondDeviceTensor(value) if is_plain else value


def _call(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """The operation on the CPU, with its result on the device that CUDA would give it."""
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    there = any(isinstance(tensor, SecondDeviceTensor) for tensor in tensors)
    wanted = kwargs.get("device")
    on_cpu = {"device": torch.device("cpu")} if _is_second(wanted) else {}
    inner_args, inner_kwargs = tree_map(_inner, args), tree_map(_inner, {**kwargs, **on_cpu})
    if func is aten._to_copy.default:
        copied = func(*inner_args, **inner_kwargs)
        return _outer(copied) if _is_second(wanted if wanted is not None else tensors[0].device) else copied
    if func is aten.copy_.default:
        func(*inner_args, **inner_kwargs)
        return args[0]
    if func is aten._fused_sdp_choice.default and there:
        return MATH_KERNEL
    if there:
        _refuse_mixture(func, args, tensors)
    result = func(*inner_args, **inner_kwargs)
    if not _is_second(wanted) and (wanted is not None or not there):
        return result
    if func._schema.is_mutable:  # gives back the tensors that it changed
        known = {id(tensor.inner): tensor for tensor in tensors if isinstance(tensor, SecondDeviceTensor)}
        result = tree_map(lambda value: known.get(id(value), value), result)
    return tree_map(_outer, result)


def _refuse_mixture(func: Any, args: Any, tensors: list[torch.Tensor]) -> None:
    foreign = [tensor for tensor in tensors if not isinstance(tensor, SecondDeviceTensor)]
    changes_foreign = func._schema.is_mutable and any(args[0] is tensor for tensor in foreign)
    if func in INDEXING and not changes_foreign:
        foreign = []
    if changes_foreign or any(tensor.dim() for tensor in foreign):
        devices = [f"{tuple(tensor.shape)} on {tensor.device}" for tensor in tensors]
        raise RuntimeError(f"Expected all tensors to be on the same device: {func} got {', '.join(devices)}")
