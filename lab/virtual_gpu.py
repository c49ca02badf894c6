"""A GPU that is not there: what a program asks of one, counted on a machine without.

Inside :func:`virtual_gpu`, tensors on :data:`DEVICE` claim a device of their own and hold CPU data. Operations that mix
them with CPU tensors raise, as they would on CUDA; launches, floating-point operations, attention calls, and whatever
makes the CPU wait for the device, are counted in a :class:`Log`::

    with virtual_gpu() as log, torch.no_grad():
        move(unet)
        unet(x.to(DEVICE), ...)
    log.launches, log.syncs, log.flops

What is a launch and a wait follows PyTorch on CUDA: a launch is an operation that reaches the device's dispatcher and
is no view and no allocation; the CPU waits for a blocking copy between CPU and device (also the one hidden in an index
made of a list or a CPU tensor, and in ``torch.tensor(..., device=...)``), for reading a value (``item``, ``tolist``,
``bool``), and for a result whose size is data (``nonzero``, a boolean index, ``unique``).

Limits:
    - Launches are counted by operation: one that starts several kernels counts once, attention always once.
    - Copies marked ``non_blocking`` are events but no waits, pinned or not.
    - The device's type is ``vgpu``: code that asks for the type ``"cuda"`` takes its other path. ``Tensor.is_cuda`` is
      True, so that code that asks for this takes the CUDA path.
    - Values are those of the CPU's kernels; nothing is known of time, streams, or the device's memory.
    - Operations that change a tensor's shape in place (``resize_``, ``unsqueeze_``) are not followed.
    - A backward pass is counted as the rest is, by ``Tensor.backward``; devices mixed in it raise when it is over. Any
      other error that an operation raises in it ends the process: PyTorch's device guard does not survive it.
    - Optimisers take their loop over parameters where on CUDA they start one kernel for many.
    - Autocast knows the operations of :data:`_AUTOCAST` and keeps no copies of weights.
"""

from __future__ import annotations

import contextlib
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch.autograd.graph import _engine_run_backward
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count


class _Backend(_DummyBackendModule):
    """What PyTorch asks of a device's module, whether or not a tensor is on the device: checkpointing reads this."""

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        """The types that autocast may take."""
        return [torch.float16, torch.bfloat16]


# PyTorch knows one such device a process, from the import on.
_setup_privateuseone_for_python_backend("vgpu", backend_module=_Backend())
DEVICE = torch.device("vgpu", 0)

aten = torch.ops.aten
_INDEXING = {
    aten.index.Tensor, aten._unsafe_index.Tensor, aten.index_put.default, aten.index_put_.default,
    aten._index_put_impl_.default,
}  # fmt: skip
_WAITING = {
    aten._local_scalar_dense.default, aten.is_nonzero.default, aten.nonzero.default, aten.equal.default,
    aten.masked_select.default, aten._unique2.default, aten.unique_dim.default, aten.unique_consecutive.default,
    aten.repeat_interleave.Tensor, aten.bincount.default,
}  # fmt: skip
_NO_KERNEL = {
    "empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "_unsafe_view", "_local_scalar_dense",
    "is_nonzero",
}  # fmt: skip
_sdpa = F.scaled_dot_product_attention
#: What CUDA's autocast brings to the lower type (True) and to float32 (False), as far as it is met here.
_AUTOCAST = {
    **dict.fromkeys(("linear", "matmul", "mm", "bmm", "addmm", "baddbmm", "conv2d", "prelu"), True),
    **dict.fromkeys(("layer_norm", "group_norm", "softmax.int", "mse_loss", "cosine_similarity", "exp"), False),
    **dict.fromkeys(("rsqrt", "pow.Tensor_Scalar", "linalg_vector_norm", "norm.ScalarOpt_dim"), False),
    **dict.fromkeys(("sum", "sum.dim_IntList"), False),
}


# --- what is counted --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Event:
    """A copy between CPU and device, or a reading of it.

    Attributes:
        kind: ``"upload"``, ``"download"``, ``"read"`` (a value, or a result's size).
        operation: what was called. blocking: whether the CPU waits.
        frames: ``file:line`` of the callers outside of PyTorch, innermost first.
    """

    kind: str
    operation: str
    blocking: bool
    frames: tuple[str, ...]


@dataclass(frozen=True)
class Attention:
    """One attention call: shapes ``B H N D`` of q, k and v, whether it had a mask, and its dtype."""

    q: tuple[int, ...]
    k: tuple[int, ...]
    v: tuple[int, ...]
    masked: bool
    dtype: torch.dtype


@dataclass
class Log:
    """What has been asked of the device.

    Attributes:
        operations: launches by operation. events: copies and readings. attention: calls of the attention kernel.
        flops: floating-point operations of matrix products, convolutions and attention.
    """

    operations: Counter[str] = field(default_factory=Counter)
    events: list[Event] = field(default_factory=list)
    attention: list[Attention] = field(default_factory=list)
    flops: int = 0
    _paused: bool = False
    _refused: RuntimeError | None = None

    @property
    def launches(self) -> int:
        """How many kernels were started."""
        return self.operations.total()

    @property
    def waits(self) -> list[Event]:
        """The events for which the CPU waits."""
        return [event for event in self.events if event.blocking]

    @property
    def syncs(self) -> int:
        """How often the CPU waited."""
        return len(self.waits)

    def clear(self) -> None:
        """Count from zero."""
        self.operations.clear()
        self.events.clear()
        self.attention.clear()
        self.flops = 0

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """What happens inside is not counted."""
        before, self._paused = self._paused, True
        try:
            yield
        finally:
            self._paused = before

    def places(self) -> Counter[tuple[str, str]]:
        """Waits by kind and innermost caller."""
        return Counter((event.kind, event.frames[0] if event.frames else "") for event in self.waits)

    def launch(self, operation: Any, flops: int = 0) -> None:
        """Count a launch."""
        if not self._paused:
            self.operations[str(operation)] += 1
            self.flops += flops

    def attend(self, q: Any, k: Any, v: Any, mask: Any = None) -> list[tuple[int, ...]]:
        """Count an attention call; returns the shapes of q, k and v."""
        if not all(isinstance(x, VirtualTensor) for x in (q, k, v, mask) if x is not None):
            self.refuse("attention", "a CPU tensor")
        shapes = [tuple(x.shape) for x in (q, k, v)]
        if not self._paused:
            self.attention.append(Attention(*shapes, mask is not None, q.dtype))
        return shapes

    def refuse(self, func: Any, what: str) -> None:
        """Raise for mixed devices. Inside of a backward pass the error waits for its end: there it would be fatal."""
        place = next(iter(_callers()), "?")
        error = RuntimeError(f"{func}: {what} meets the virtual device, at {place}")
        if torch._C._current_graph_task_id() < 0:
            raise error
        self._refused = self._refused or error

    def raise_refused(self) -> None:
        """Raise what a backward pass refused."""
        error, self._refused = self._refused, None
        if error is not None:
            raise error

    def note(self, kind: str, operation: Any, blocking: bool = True) -> None:
        """Count an event."""
        if not self._paused:
            self.events.append(Event(kind, str(operation), blocking, _callers()))


_TORCH = str(Path(torch.__file__).parent)


def _callers() -> tuple[str, ...]:
    frame, found = sys._getframe(2), []
    while frame is not None and len(found) < 8:
        file = frame.f_code.co_filename
        if file != __file__ and not file.startswith((_TORCH, "<")):
            found.append(f"{file}:{frame.f_lineno}")
        frame = frame.f_back
    return tuple(found)


# --- tensors ----------------------------------------------------------------------------------------------------------


class VirtualTensor(torch.Tensor):
    """Claims :data:`DEVICE` and holds the CPU tensor ``data_on_cpu``."""

    data_on_cpu: torch.Tensor

    @staticmethod
    def __new__(cls, data: torch.Tensor) -> VirtualTensor:
        made = torch.Tensor._make_wrapper_subclass(
            cls, data.size(), strides=data.stride(), storage_offset=data.storage_offset(), dtype=data.dtype,
            layout=data.layout, device=DEVICE,
        )  # fmt: skip
        made.data_on_cpu = data
        return made

    @property
    def is_cuda(self) -> bool:
        return True

    def __repr__(self, **_: Any) -> str:
        return f"VirtualTensor({tuple(self.shape)}, {self.dtype})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        return _dispatch(func, args, kwargs or {}, Log())  # used outside of virtual_gpu: right, but not counted


def _is_virtual(device: Any) -> bool:
    return device is not None and torch.device(device).type == DEVICE.type


def on_cpu(x: Any) -> Any:
    """The data of a virtual tensor, without a count; anything else as it is."""
    return x.data_on_cpu if isinstance(x, VirtualTensor) else x


def move(module: torch.nn.Module) -> torch.nn.Module:
    """Put a module's parameters and buffers on the virtual device, in place."""
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None:
                copy = VirtualTensor(parameter.detach().clone())
                part._parameters[name] = torch.nn.Parameter(copy, requires_grad=parameter.requires_grad)
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = VirtualTensor(buffer.detach().clone())
    return module


# --- operations -------------------------------------------------------------------------------------------------------


def _dispatch(func: Any, args: tuple, kwargs: dict[str, Any], log: Log) -> Any:
    if func is aten._to_copy.default:
        return _to_copy(func, args[0], kwargs, log)
    leaves = tree_leaves((args, kwargs))
    if func is aten._has_compatible_shallow_copy_type.default:  # asked by Module.to: the data is not where it looks
        return not any(isinstance(x, VirtualTensor) for x in leaves)
    if func is aten._scaled_dot_product_flash_attention.default:
        return _flash(args, log)
    if func is aten.copy_.default:
        return _copy(func, args, kwargs, log)
    if not any(isinstance(x, VirtualTensor) for x in leaves) and not _is_virtual(kwargs.get("device")):
        return func(*args, **kwargs)
    plain_args, plain = tree_map(on_cpu, (args, kwargs))
    if plain.get("device") is not None:  # a new tensor, of which another may tell the shape
        plain["device"] = torch.device("cpu")
        if not _is_virtual(kwargs["device"]):
            return func(*plain_args, **plain)
    else:
        _check_devices(func, args, leaves, log)
    if func in _WAITING:
        log.note("read", func)
    out = func(*plain_args, **plain)
    if not func.is_view and func.overloadpacket.__name__ not in _NO_KERNEL:
        count = flop_registry.get(func.overloadpacket)
        log.launch(func, count(*plain_args, **plain, out_val=out) if count else 0)
    return _wrap(func, leaves, out)


def _wrap(func: Any, leaves: list[Any], out: Any) -> Any:
    changed = {}
    if func._schema.is_mutable:
        changed = {id(x.data_on_cpu): x for x in leaves if isinstance(x, VirtualTensor)}

    def wrap(x: Any) -> Any:
        if not isinstance(x, torch.Tensor):
            return x
        return changed[id(x)] if id(x) in changed else VirtualTensor(x)

    virtual = (x for x in leaves if isinstance(x, VirtualTensor))
    if func.is_view and torch.is_inference_mode_enabled() and not any(x.is_inference() for x in virtual):
        with torch.inference_mode(False):  # a view is of the kind that its tensor is
            return tree_map(wrap, out)
    return tree_map(wrap, out)


def _to_copy(func: Any, source: torch.Tensor, kwargs: dict[str, Any], log: Log) -> torch.Tensor:
    here, device = isinstance(source, VirtualTensor), kwargs.get("device")
    there = here if device is None else _is_virtual(device)
    if here != there:
        log.note("upload" if there else "download", func, not kwargs.get("non_blocking", False))
    elif there:
        log.launch(func)
    made = func(on_cpu(source), **{k: v for k, v in kwargs.items() if k not in ("device", "pin_memory")})
    return VirtualTensor(made) if there else made


def _copy(func: Any, args: tuple, kwargs: dict[str, Any], log: Log) -> torch.Tensor:
    target, source = args[:2]
    here, there = isinstance(source, VirtualTensor), isinstance(target, VirtualTensor)
    waits = not (args[2] if len(args) > 2 else kwargs.get("non_blocking", False))
    if here != there:
        log.note("upload" if there else "download", func, waits)
    elif there:
        log.launch(func)
    func(on_cpu(target), on_cpu(source))
    return target


def _flash(args: tuple, log: Log) -> tuple:
    """CUDA's kernel that tells the sum of its softmax, by the CPU's."""
    shapes = log.attend(*args[:3])
    out, mass = aten._scaled_dot_product_flash_attention_for_cpu(*(on_cpu(x) for x in args[:3]))
    log.launch("attention", sdpa_flop_count(*shapes))
    nothing = torch.empty(0)
    return (VirtualTensor(out), VirtualTensor(mass), nothing, nothing, shapes[0][2], shapes[1][2], *[nothing] * 3)


def _check_devices(func: Any, args: tuple, leaves: list[Any], log: Log) -> None:
    """Raise where CUDA would; count the copies and readings that an index hides."""
    if func in _INDEXING:
        return _check_index(func, args, log)
    for x in leaves:
        if isinstance(x, torch.Tensor) and not isinstance(x, VirtualTensor) and x.dim() > 0:
            log.refuse(func, f"a CPU tensor of shape {tuple(x.shape)}")


def _check_index(func: Any, args: tuple, log: Log) -> None:
    target, indices, values = args[0], [i for i in args[1] if i is not None], args[2:3]
    if not isinstance(target, VirtualTensor):
        log.refuse(func, "an index on the device into a CPU tensor")
    if any(isinstance(v, torch.Tensor) and not isinstance(v, VirtualTensor) and v.dim() > 0 for v in values):
        log.refuse(func, "values on the CPU")
    filled = len(indices) == 1 and values and values[0].numel() == 1  # a mask that takes one value needs no indices
    for index in indices:
        if not isinstance(index, VirtualTensor):
            log.note("upload", func)
        if index.dtype in (torch.bool, torch.uint8) and not filled:
            log.note("read", func)


class _Dispatch(TorchDispatchMode):
    def __init__(self, log: Log) -> None:
        super().__init__()
        self.log = log

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if torch.is_inference_mode_enabled() and func._can_decompose():  # there a composite operation comes whole
            with self:
                return func.decompose(*args, **(kwargs or {}))
        return _dispatch(func, args, kwargs or {}, self.log)


class _Functions(TorchFunctionMode):
    """What PyTorch does before its dispatcher: indexing, ``tolist``, new tensors of lists, the attention kernel."""

    def __init__(self, log: Log) -> None:
        super().__init__()
        self.log = log

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs, first = kwargs or {}, args[0] if args else None
        ours = isinstance(first, VirtualTensor)
        if func is _sdpa and ours:
            return self._attend(*args, **kwargs)
        if func is torch.Tensor.backward and ours:
            return self._backward(*args, **kwargs)
        if func in (torch.Tensor.__getitem__, torch.Tensor.__setitem__) and ours:
            return func(first, self._index(args[1], func), *args[2:])
        if func is torch.Tensor.tolist and ours:
            self.log.note("read", "tolist")
            return first.data_on_cpu.tolist()
        if func is torch.Tensor.new_tensor and ours:
            return self._upload(torch.tensor(args[1], dtype=kwargs.get("dtype", first.dtype)), func)
        if func in (torch.tensor, torch.as_tensor) and _is_virtual(kwargs.get("device")) and not ours:
            return self._upload(func(*args, **{k: v for k, v in kwargs.items() if k != "device"}), func)
        return func(*args, **kwargs)

    def _upload(self, data: torch.Tensor, func: Any) -> VirtualTensor:
        self.log.note("upload", getattr(func, "__name__", func))
        return VirtualTensor(data)

    def _index(self, index: Any, func: Any) -> Any:
        if isinstance(index, tuple):
            return tuple(self._one_index(i, func) for i in index)
        return self._one_index(index, func)

    def _one_index(self, index: Any, func: Any) -> Any:
        if isinstance(index, list):
            return self._upload(torch.tensor(index), func)
        if not isinstance(index, torch.Tensor) or index.dtype == torch.bool:
            return index
        if isinstance(index, VirtualTensor):
            return int(index) if index.dim() == 0 else index
        return self._upload(index, func) if index.dim() > 0 else int(index)

    def _backward(
        self, loss: Any, gradient: Any = None, retain_graph: Any = None, create_graph: bool = False, inputs: Any = None
    ) -> None:
        """:meth:`torch.Tensor.backward` with this mode open for the engine; while it handles a call it is closed."""
        gradient = torch.ones_like(loss) if gradient is None else gradient
        keep = create_graph if retain_graph is None else retain_graph
        with self:
            _engine_run_backward((loss,), (gradient,), keep, create_graph, tuple(inputs or ()), True, True)
        self.log.raise_refused()

    def _attend(self, q: Any, k: Any, v: Any, attn_mask: Any = None, *args: Any, **kwargs: Any) -> torch.Tensor:
        if torch.is_autocast_enabled(DEVICE.type):
            q, k, v = (x.to(torch.get_autocast_dtype(DEVICE.type)) for x in (q, k, v))
        shapes = self.log.attend(q, k, v, attn_mask)
        self.log.launch("attention", sdpa_flop_count(*shapes))
        return _Attention.apply(self.log, partial(_sdpa, **kwargs), args, q, k, v, attn_mask)


class _Attention(torch.autograd.Function):
    """The attention kernel, one launch in either direction."""

    @staticmethod
    def forward(ctx: Any, log: Log, kernel: Any, more: tuple, *given: Any) -> torch.Tensor:
        ctx.log, ctx.kernel, ctx.more = log, kernel, more
        ctx.save_for_backward(*given)
        return VirtualTensor(kernel(*map(on_cpu, given), *more))

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple:
        given = [x if x is None else on_cpu(x).detach() for x in ctx.saved_tensors]
        wanted = ctx.needs_input_grad[3:]
        learnt = [x.requires_grad_() for x, asked in zip(given, wanted, strict=True) if asked]
        with torch.enable_grad():
            out = ctx.kernel(*given, *ctx.more)
        shapes = [tuple(x.shape) for x in given[:3]]
        ctx.log.launch("attention backward", sdpa_backward_flop_count(tuple(out.shape), *shapes))
        found = iter(torch.autograd.grad(out, learnt, on_cpu(gradient)))
        return (None, None, None, *(VirtualTensor(next(found)) if asked else None for asked in wanted))


def _autocast(name: str, lower: bool) -> Any:
    """An operation's kernel under autocast."""
    packet, _, overload = name.partition(".")
    operation = getattr(getattr(aten, packet), overload or "default")
    keys = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastPrivateUse1)

    def kernel(*args: Any, **kwargs: Any) -> Any:
        dtype = torch.get_autocast_dtype(DEVICE.type) if lower else torch.float32

        def cast(x: Any) -> Any:
            narrow = isinstance(x, torch.Tensor) and x.is_floating_point() and x.dtype != torch.float64
            return x.to(dtype) if narrow and not x.is_cpu else x

        with torch._C._ExcludeDispatchKeyGuard(keys):
            return operation(*tree_map(cast, args), **tree_map(cast, kwargs))

    return kernel


_rest = torch.library.Library("_", "IMPL", "AutocastPrivateUse1")
_rest.fallback(torch.library.fallthrough_kernel)
_kernels = torch.library.Library("aten", "IMPL", "AutocastPrivateUse1")
for _name, _lower in _AUTOCAST.items():
    _kernels.impl(_name, _autocast(_name, _lower))


@contextlib.contextmanager
def virtual_gpu() -> Iterator[Log]:
    """While the context is open the device is there; what it is asked for is counted in the log."""
    log = Log()
    with _Functions(log), _Dispatch(log):
        yield log
