"""Compute operations on pretended GPUs with the CPU, and record what a real GPU would do.

Tensors are true CUDA tensors in memory of the host (`cuda_runtime.c`). `PretendedGpu` is a dispatch mode that
repeats each operation with CPU tensors over the same memory. Everything above the kernels is torch's own:
devices, allocator, autocast, gradient scaler, autograd's threads, pinned memory, DistributedDataParallel.

It finds operands on different devices, code that only runs on CUDA, host-device synchronizations, and
operations in half precision. The number of kernels is an estimate. Kernels, NCCL, races and speed cannot be
tested like this. Random numbers come from the CPU's generator.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tests.pretend_gpu.kernels import KERNELS

ROOT = Path(__file__).resolve().parents[2]

BACKWARD = "(backward)"
"""Place of an operation without a line of this project on the stack."""

NATIVE = {
    "aten::_fused_sdp_choice",
    "aten::_has_same_storage_numel",
    "aten::_local_scalar_dense",
    "aten::_pin_memory",
    "aten::_reshape_alias",
    "aten::_unsafe_view",
    "aten::empty",
    "aten::empty_like",
    "aten::empty_strided",
    "aten::is_pinned",
    "aten::is_same_size",
    "aten::new_empty",
    "aten::new_empty_strided",
    "aten::record_stream",
    "aten::resize_",
    "aten::set_",
}
"""Operations that torch can do itself, because they launch no kernel."""

COPIES = ("aten::copy_", "aten::_to_copy")

INDEXING = ("aten::index", "aten::index_put_", "aten::_index_put_impl_")

SYNCHRONIZING = {
    "aten::_local_scalar_dense": "a value is read",
    "aten::_unique2": "the size of the result is read",
    "aten::bincount": "the size of the result is read",
    "aten::equal": "a value is read",
    "aten::lift_fresh": "torch.tensor copies from the host",
    "aten::masked_select": "the size of the result is read",
    "aten::nonzero": "the size of the result is read",
    "aten::unique_consecutive": "the size of the result is read",
    "aten::unique_dim": "the size of the result is read",
    "torchvision::nms": "the size of the result is read",
}
"""Operations that synchronize host and device, with the reason."""

SEVERAL_KERNELS = {
    "aten::_scaled_dot_product_cudnn_attention_backward": 2,
    "aten::_scaled_dot_product_efficient_attention_backward": 2,
    "aten::_scaled_dot_product_flash_attention_backward": 3,
    "aten::convolution_backward": 2,
    "aten::embedding_dense_backward": 2,
    "aten::grid_sampler_2d_backward": 2,
    "aten::masked_select": 3,
    "aten::native_layer_norm_backward": 2,
    "aten::nonzero": 3,
    "aten::randperm": 3,
    "aten::sort": 3,
    "aten::topk": 2,
}
"""Estimated number of kernels of operations that need more than one."""

ACCUMULATING_INDEX_PUT = 6
"""Estimated number of kernels if indices are sorted first."""


class PretendedGpu(TorchDispatchMode):
    """Dispatch mode that computes and records operations on CUDA devices, also in autograd's threads."""

    def __init__(self) -> None:
        super().__init__()
        self._process = os.getpid()
        self._memory: dict[tuple[int, int], torch.UntypedStorage] = {}
        self.reset()

    def reset(self) -> None:
        """Forget what was recorded."""
        self.operations: Counter[str] = Counter()
        self.kernels: Counter[str] = Counter()
        """Estimated number of kernels by place."""
        self.synchronizations: Counter[tuple[str, str]] = Counter()
        """Number of host-device synchronizations by place and reason."""
        self.half: Counter[tuple[str, str]] = Counter()
        """Number of results in half precision, by place and operation."""

    def report(self) -> dict[str, Any]:
        """Return the record for a JSON file. `launches` must be 0: kernels that this mode did not compute."""
        launches = ctypes.c_long.in_dll(ctypes.CDLL(None), "pretend_launches")
        return {
            "operations": dict(self.operations.most_common()),
            "kernels": dict(self.kernels.most_common()),
            "synchronizations": _rows(self.synchronizations),
            "half": _rows(self.half),
            "launches": launches.value,
        }

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Compute one operation."""
        kwargs = kwargs or {}
        tensors = [
            value
            for value in _leaves((args, kwargs))
            if isinstance(value, Tensor)
        ]
        home = _home(tensors, kwargs.get("device"))
        is_worker = (
            os.getpid() != self._process
        )  # of a loader, which uses the CPU
        if home is None or is_worker:
            return func(*args, **kwargs)
        name = func._schema.name
        if _is_composite(func):
            with self:
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        place = _place()
        reason = _synchronization(name, args, kwargs)
        if reason:
            self.synchronizations[place, reason] += 1
        if func.is_view or name in NATIVE:
            return func(*args, **kwargs)
        self.operations[name] += 1
        self.kernels[place] += _kernel_count(name, args)
        if name.startswith("c10d::"):
            return func(*args, **kwargs)
        _refuse_mixed_devices(func, name, tensors, place)
        result = self._compute(func, name, args, kwargs, home)
        for value in _leaves(result):
            if isinstance(value, Tensor) and _is_half(value):
                self.half[place, name] += 1
                break
        return result

    def _compute(
        self,
        func: Any,
        name: str,
        args: tuple,
        kwargs: dict,
        home: torch.device,
    ) -> Any:
        """Run an operation on the CPU; return its results on `home`, and arguments as themselves."""
        given: dict[int, Tensor] = {}

        def to_host(value: Any) -> Any:
            if isinstance(value, Tensor):
                host = self._host_view(value) if value.is_cuda else value
                given[id(host)] = value
                return host
            if isinstance(value, torch.device):
                return torch.device("cpu")
            if isinstance(value, torch.Generator):
                return None
            return value

        def to_home(value: Any) -> Any:
            if not isinstance(value, Tensor):
                return value
            if id(value) in given:  # written in place
                return given[id(value)]
            return value if home.type == "cpu" else self._placed(value, home)

        host_args = _mapped(args, to_host)
        host_kwargs = _mapped(kwargs, to_host)
        result = KERNELS.get(name, func)(*host_args, **host_kwargs)
        return _mapped(result, to_home)

    def _host_view(self, tensor: Tensor) -> Tensor:
        """Return a CPU tensor over the memory of a device tensor."""
        storage = tensor.untyped_storage()
        key = (storage.data_ptr(), storage.nbytes())
        if not key[1]:
            shape, stride = tensor.shape, tensor.stride()
            return torch.empty_strided(shape, stride, dtype=tensor.dtype)
        if key not in self._memory:
            if len(self._memory) > 20_000:
                self._memory.clear()
            raw = (ctypes.c_char * key[1]).from_address(key[0])
            flat = torch.frombuffer(raw, dtype=torch.uint8)
            self._memory[key] = flat.untyped_storage()
        view = torch.empty(0, dtype=tensor.dtype)
        offset = tensor.storage_offset()
        return view.set_(
            self._memory[key], offset, tensor.shape, tensor.stride()
        )

    def _placed(self, tensor: Tensor, device: torch.device) -> Tensor:
        """Return a device tensor with the values of a CPU tensor."""
        shape, stride = tensor.shape, tensor.stride()
        copied = torch.empty_strided(
            shape, stride, dtype=tensor.dtype, device=device
        )
        if copied.numel():
            self._host_view(copied).copy_(tensor)
        return copied


def _rows(counter: Counter[tuple[str, str]]) -> list[list]:
    return [[*key, count] for key, count in counter.most_common()]


def _leaves(value: Any) -> Iterator[Any]:
    """Yield the values of nested lists, tuples and dictionaries."""
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, (list, tuple)):
        yield value
        return
    for item in value:
        yield from _leaves(item)


def _mapped(value: Any, function: Callable[[Any], Any]) -> Any:
    """Apply a function to the values of nested lists, tuples and dictionaries."""
    if isinstance(value, dict):
        return {key: _mapped(item, function) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)([_mapped(item, function) for item in value])
    return function(value)


def _home(tensors: list[Tensor], wanted: Any) -> torch.device | None:
    """Return the device of the results; None if an operation has nothing to do with CUDA devices."""
    used = next((t.device for t in tensors if t.is_cuda), None)
    if wanted is None:
        return used
    device = torch.device(wanted)
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return device if device.type == "cuda" or used is not None else None


_composite: dict[Any, bool] = {}


def _is_composite(func: Any) -> bool:
    """Return whether an operation consists of others, which the mode should see instead."""
    if func not in _composite:
        has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
        name = func.name()
        # `silu_backward` consists of others only where it has no kernel
        _composite[func] = has_kernel(
            name, "CompositeImplicitAutograd"
        ) and not has_kernel(name, "CUDA")
    return _composite[func]


_files: dict[str, str | None] = {}


def _place() -> str:
    """Return the innermost line of this project on the stack, "file:line"."""
    frame = sys._getframe(2)
    while frame is not None:
        name = frame.f_code.co_filename
        if name not in _files:
            path = Path(name)
            # an environment in the tree, as `make test` creates it, is not ours
            is_ours = (
                path.is_relative_to(ROOT)
                and path.parent != Path(__file__).parent
                and "site-packages" not in path.parts
            )
            _files[name] = str(path.relative_to(ROOT)) if is_ours else None
        if _files[name] is not None:
            return f"{_files[name]}:{frame.f_lineno}"
        frame = frame.f_back
    return BACKWARD


def _is_half(tensor: Tensor) -> bool:
    return tensor.dtype in (torch.bfloat16, torch.float16)


def _refuse_mixed_devices(
    func: Any, name: str, tensors: list[Tensor], place: str
) -> None:
    """Raise as CUDA does if operands are on different devices."""
    if name in COPIES or name == "aten::_foreach_copy_":
        return
    takes_numbers = torch.Tag.pointwise in func.tags or name.startswith(
        ("aten::_foreach", "aten::fill_", "aten::masked_fill", "aten::where")
    )
    devices = set()
    for tensor in tensors:
        is_allowed = name in INDEXING or (takes_numbers and not tensor.dim())
        if tensor.is_cuda or not is_allowed:
            devices.add(str(tensor.device))
    if len(devices) > 1:
        raise RuntimeError(
            "Expected all tensors to be on the same device, but found "
            f"{' and '.join(sorted(devices))} in {name} at {place}"
        )


def _synchronization(name: str, args: tuple, kwargs: dict) -> str | None:
    """Return the reason why an operation synchronizes host and device; None if it does not."""
    if name in SYNCHRONIZING:
        return SYNCHRONIZING[name]
    if name in COPIES:
        return _blocking_copy(name, args, kwargs)
    if name in INDEXING:
        return _blocking_index(name, args)
    if name == "aten::repeat_interleave" and kwargs.get("output_size") is None:
        return "the size of the result is read"
    return None


def _blocking_index(name: str, args: tuple) -> str | None:
    writes_number = name != "aten::index" and args[2].numel() == 1
    has_mask = False
    for index in args[1]:
        if not isinstance(index, Tensor):
            continue
        is_mask = index.dtype in (torch.bool, torch.uint8)
        if index.is_cuda and is_mask and not writes_number:
            return "an index is a mask"
        if not index.is_cuda and index.dim():
            return "an index is on the host"
        has_mask = has_mask or is_mask
    if writes_number and not args[2].is_cuda and not has_mask:
        return "a number is copied from the host"
    return None


def _blocking_copy(name: str, args: tuple, kwargs: dict) -> str | None:
    source = args[1] if name == "aten::copy_" else args[0]
    target = args[0].device
    asynchronous = kwargs.get("non_blocking", False)
    to_pageable = False
    if name == "aten::copy_":
        asynchronous = asynchronous or (len(args) > 2 and args[2])
        to_pageable = target.type == "cpu" and not args[0].is_pinned()
    elif kwargs.get("device") is not None:
        target = torch.device(kwargs["device"])
    if not source.numel() or target.type == source.device.type:
        return None
    if target.type == "cuda":
        return None if asynchronous else "a blocking copy to the device"
    return None if asynchronous and not to_pageable else "a copy to the host"


def _kernel_count(name: str, args: tuple) -> int:
    """Estimate the number of kernels that an operation launches."""
    if name.startswith("aten::_foreach_"):
        tensors = args[0]
        if len({tensor.dtype for tensor in tensors}) > 1:
            return len(tensors)  # the slow path: one by one
        return -(-len(tensors) // 50) + (name == "aten::_foreach_norm")
    if name.startswith("aten::_fused_adam"):
        return -(-len(args[0]) // 30)
    if name.startswith("aten::_amp_foreach"):
        return -(-len(args[0]) // 50)
    if "index_put" in name and len(args) > 3 and args[3]:
        return ACCUMULATING_INDEX_PUT
    return SEVERAL_KERNELS.get(name, 1)
