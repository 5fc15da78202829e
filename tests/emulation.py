"""CUDA devices on a machine without one: the numbers are the CPU's, the rules CUDA's.

A tensor "on" a device is a plain CPU tensor whose storage bears the device's name. Python is told
that name, every operation is checked as CUDA checks it, and all is counted. Kernels, speed, use of
memory and rounding are not CUDA's. It holds for the thread that enters it.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache, partial
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from tests.leaves import tensors
from tests.reference import varlen_attention

aten = torch.ops.aten
COMPOSITE = torch._C.DispatchKey.CompositeImplicitAutograd


@cache
def composite(op: Any) -> bool:
    """Whether torch takes the operation apart into others before any device sees it."""
    return op not in REPLACED and torch._C._dispatch_has_kernel_for_dispatch_key(
        op.name(), COMPOSITE
    )


CPU = torch.device("cpu")
TOTAL = 80 * 10**9
STREAM = torch.cuda.Stream

REPLACED: dict[Any, Callable[..., Any]] = {
    aten._flash_attention_forward.default: varlen_attention.forward,
}
"""CPU implementations of operations that only CUDA has, by operation."""

SHORTAGES: Mapping[str, Exception] = {
    "torch": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    "driver": torch.AcceleratorError("CUDA error: out of memory\nCompile with TORCH_USE_CUDA_DSA"),
    "cublas": RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate(h)"),
    "cudnn": RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
}
"""What torch, the driver and the libraries raise where memory runs out."""

PROPERTIES: Mapping[str, Any] = vars(torch._C.TensorBase)
ANSWERS: Mapping[Any, Callable[[torch.device], object]] = {
    PROPERTIES["device"].__get__: lambda at: at,
    PROPERTIES["is_cuda"].__get__: lambda at: at.type == "cuda",
    PROPERTIES["is_cpu"].__get__: lambda at: at.type == "cpu",
    Tensor.get_device: lambda at: -1 if at.index is None else at.index,
}
INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index"}
WAITING = {"_local_scalar_dense", "nonzero", "equal", "is_nonzero", "masked_select", "_unique2"}
NO_KERNEL = {
    "empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "set_", "resize_",
    "_unsafe_view", "lift_fresh", "_local_scalar_dense",
}  # fmt: skip


def place(tensor: Tensor) -> torch.device:
    """Where a tensor is taken to be."""
    if hasattr(tensor, "__tensor_flatten__"):  # made of others, as torchao's 8-bit weights are
        return place(getattr(tensor, tensor.__tensor_flatten__()[0][0]))
    if tensor.is_meta:
        return torch.device("meta")
    return getattr(tensor.untyped_storage(), "place", CPU)


class Emulation:
    """What was asked of the devices, and when they run out of memory."""

    def __init__(self, devices: int) -> None:
        self.devices = devices
        self.kernels: Counter[str] = Counter()
        """Kernels launched, by operation."""
        self.traffic: Counter[str] = Counter()
        """``to device``, ``to host``, ``index to device``, ``pinned`` and ``wait``."""
        self.target: torch.device | None = None
        """Where new tensors go; None: where those are that they are made of."""
        self.recording: Graph | None = None
        """The CUDA graph that is being recorded."""
        self.stream: object = "usual"
        """The current stream."""
        self.broken = False
        """Whether recordings of graphs cannot be ended once something in them has failed."""
        self.sees = True
        """Whether operations are checked and counted."""
        self._shortages = dict[int, Exception]()

    def run_out(self, error: Exception, after: int = 0) -> None:
        """Let the next kernel, or the one after so many, find no memory; the rest find some."""
        self._shortages[self.kernels.total() + after] = error

    def launch(self, name: str) -> None:
        """Count a kernel, or raise if it is to find no memory; one that is recorded waits."""
        if error := self._shortages.pop(self.kernels.total(), None):
            raise error
        if self.recording is not None:
            return
        self.kernels[name] += 1

    def tell(self, what: str, number: int = 1) -> None:
        """Count traffic, of which there is none while a graph is recorded."""
        if number and self.recording is not None:
            raise torch.AcceleratorError("CUDA error: operation not permitted when capturing")
        self.traffic[what] += number

    def resolved(self, device: Any) -> torch.device:
        """A device with its number."""
        asked = torch.device("cuda", device) if isinstance(device, int) else torch.device(device)
        number = asked.index or 0
        if asked.type == "cuda" and number >= self.devices:
            raise torch.AcceleratorError("CUDA error: invalid device ordinal")
        return torch.device("cuda", number) if asked.type == "cuda" else asked

    @contextmanager
    def unseen(self) -> Iterator[None]:
        """A context in which operations are neither checked nor counted."""
        self.sees = False
        try:
            yield
        finally:
            self.sees = True

    @contextmanager
    def making(self, device: torch.device) -> Iterator[None]:
        """A context in which new tensors are on this device."""
        before, self.target = self.target, device
        try:
            yield
        finally:
            self.target = before


class Graph:
    """A CUDA graph: operations that were not carried out when asked for, and are at each replay.

    They read and write where they were told to. That memory which they read is kept until then is
    not checked.
    """

    def __init__(self, on: Emulation) -> None:
        self._on = on
        self._operations: list[tuple[Any, Any, Any, list[Tensor]]] = []
        self._written: list[tuple[Tensor, Tensor]] = []
        self._made = dict[int, Any]()

    def record(self, op: Any, *args: Any, **kwargs: Any) -> Any:
        """Note an operation; what it makes has a shape, a place and, for now, no values."""
        if op._schema.is_mutable:
            given = tensors(args, kwargs)
            others = [x for x in given if x.untyped_storage().data_ptr() not in self._made]
            self._written += [(x, x.clone()) for x in others]
        made = REPLACED.get(op, op)(*args, **kwargs)
        leaves = tensors(made)
        if not op.is_view:
            self._operations.append((op, args, kwargs, leaves))
            storages = [leaf.untyped_storage() for leaf in leaves]
            self._made |= {storage.data_ptr(): storage for storage in storages}
        return made

    def end(self) -> None:
        """Undo what recording has done."""
        with self._on.unseen():
            for *_operation, leaves in self._operations:
                for leaf in leaves:
                    leaf.fill_(torch.nan if leaf.is_floating_point() else 77)
            for tensor, before in reversed(self._written):
                tensor.copy_(before)

    def replay(self) -> None:
        """Carry all of it out, by one launch."""
        self._on.launch("graph")
        with self._on.unseen():
            for op, args, kwargs, leaves in self._operations:
                again = tensors(REPLACED.get(op, op)(*args, **kwargs))
                for leaf, value in zip(leaves, again, strict=True):
                    if leaf.data_ptr() != value.data_ptr():
                        leaf.copy_(value)


class _Operations(TorchDispatchMode):
    """Checks and counts operations, and puts in place what they make."""

    def __init__(self, on: Emulation) -> None:
        super().__init__()
        self._on = on

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not self._on.sees:
            return op(*args, **kwargs)
        if any(hasattr(kind, "__tensor_flatten__") for kind in types):
            return NotImplemented  # the operations that it is made of come here
        if composite(op):
            with self:  # torch's own parts; what op.decompose takes for them differs in dropout
                return op._op_dk(COMPOSITE, *args, **kwargs)
        given = tensors(args, kwargs)
        device = self._on.target or self._common_place(op, given)
        if device.type != "cuda":
            return op(*args, **kwargs)
        self._count(op, given, kwargs.get("generator"))
        known = [] if self._on.target else [tensor.untyped_storage() for tensor in given]
        run = REPLACED.get(op, op)
        if self._on.recording is not None:
            run = partial(self._on.recording.record, op)
        made = run(*args, **kwargs)
        for tensor in tensors(made[0] if op is aten._pack_padded_sequence.default else made):
            storage: Any = tensor.untyped_storage()
            if not any(storage is other for other in known):
                storage.place = device
        return made

    def _common_place(self, op: Any, given: list[Tensor]) -> torch.device:
        """Where the operands are; raises where CUDA does."""
        name = op.overloadpacket.__name__
        places = [place(tensor) for tensor in given if tensor.dim() or place(tensor) != CPU]
        if name == "_pack_padded_sequence" and places.pop() != CPU:
            raise RuntimeError("'lengths' argument should be a 1D CPU int64 tensor")
        others = set(places[1:]) - set(places[:1])
        if not others:
            return places[0] if places else CPU
        values = given[-1] if "put" in name else given[0]
        if name == "copy_":
            self._on.tell("to host" if places[0] == CPU else "to device")
        elif name in INDEXING and others == {CPU} and (place(values) != CPU or not values.dim()):
            self._on.tell("index to device")
        else:
            found = ", ".join(map(str, places))
            raise RuntimeError(f"Expected all tensors to be on the same device ({op}): {found}")
        return places[0]

    def _count(self, op: Any, given: list[Tensor], generator: torch.Generator | None) -> None:
        """Count the operation; it must not draw from a generator that is global or the CPU's."""
        name = op.overloadpacket.__name__
        drawing = "attention" not in name and "sdp" not in name  # those draw for dropout alone
        if torch.Tag.nondeterministic_seeded in op.tags and drawing:
            assert generator is not None, f"{op} draws from CUDA's global generator"
            raise RuntimeError("Expected a 'cuda' device type for generator but found 'cpu'")
        masked = name in INDEXING and any(tensor.dtype == torch.bool for tensor in given[1:])
        self._on.tell("wait", name in WAITING or masked)
        if not op.is_view and name not in NO_KERNEL:
            self._on.launch(name)


class _Functions(TorchFunctionMode):
    """Answers Python's questions about devices, and moves tensors between them."""

    def __init__(self, on: Emulation) -> None:
        super().__init__()
        self._on = on

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if args and isinstance(args[0], Tensor):
            x, at = args[0], place(args[0])
            if function in ANSWERS:
                return ANSWERS[function](at)
            if function in (Tensor.to, Tensor.cpu, Tensor.cuda):
                return self._moved(x, *_asked(function, args[1:], kwargs))
            if function in (Tensor.numpy, Tensor.__array__) and at.type == "cuda":
                raise TypeError(f"can't convert {at} device type tensor to numpy. Use Tensor.cpu()")
            if function is Tensor.pin_memory:
                assert at == CPU, f"cannot pin a tensor on {at}"
                self._on.traffic["pinned"] += 1
                return x.clone()
            if function is Tensor.tolist:
                self._on.tell("to host", at.type == "cuda")
            if function is Tensor.__deepcopy__:
                with self._on.making(at):
                    return function(*args, **kwargs)
        device = kwargs.get("device")
        if device is None or (device := self._on.resolved(device)).type == "meta":
            return function(*args, **kwargs)
        self._on.traffic["pinned"] += kwargs.pop("pin_memory", False)
        with self._on.making(device):
            return function(*args, **kwargs | {"device": "cpu"})

    def _moved(
        self, x: Tensor, device: Any, dtype: torch.dtype | None = None, copy: bool = False
    ) -> Tensor:
        here, dtype = place(x), dtype or x.dtype
        device = here if device is None else self._on.resolved(device)
        if "meta" in (here.type, device.type):
            return x.to(device.type, dtype, copy=copy)
        if here == device:
            return x.to(dtype, copy=copy)
        assert not (x.requires_grad and torch.is_grad_enabled()), "a gradient between devices"
        self._on.tell("to host" if device == CPU else "to device")
        with self._on.making(device):
            return x.to(dtype, copy=True)


def _asked(function: Any, args: Any, kwargs: Any) -> tuple[Any, ...]:
    """The device, type and copy that ``Tensor.to``, ``cpu`` or ``cuda`` is asked for."""
    if function is not Tensor.to:
        return (CPU if function is Tensor.cpu else kwargs.get("device", *args or ["cuda"]),)
    copy = kwargs.pop("copy", False)
    if args and isinstance(args[0], Tensor):
        return place(args[0]), args[0].dtype, copy
    return *torch._C._nn._parse_to(*args, **kwargs)[:2], copy


@contextmanager
def emulated_cuda(devices: int = 1, free: int = 70 * 10**9) -> Iterator[Emulation]:
    """A context in which there are CUDA devices.

    Args:
        devices: How many.
        free: Bytes of memory that each has left.
    """
    on, autocast, wrapper = Emulation(devices), torch.autocast, Tensor._make_wrapper_subclass

    def global_generator(*_given: object) -> None:
        raise AssertionError("CUDA's global generator is used")

    def wait(*_given: object) -> None:
        on.tell("wait")

    @contextmanager
    def on_stream(stream: object) -> Iterator[None]:
        before, on.stream = on.stream, stream
        try:
            yield
        finally:
            on.stream = before

    @contextmanager
    def record(graph: Graph, pool: object, stream: object) -> Iterator[None]:
        assert on.recording is None
        before, on.stream, on.recording, ended = on.stream, stream, graph, False
        try:
            yield
            ended = True
        finally:
            on.recording = None
            if on.broken and not ended:  # as torch, whose stream then stays
                raise torch.AcceleratorError("CUDA error: operation failed when capturing")
            on.stream = before
        graph.end()

    named = SimpleNamespace(name="Emulated GPU", total_memory=TOTAL, uuid="0", major=9, minor=0)
    generators = ("manual_seed", "manual_seed_all", "get_rng_state", "set_rng_state")
    answers = {
        "is_available": True, "is_initialized": True, "device_count": devices, "current_device": 0,
        "mem_get_info": (free, TOTAL), "memory_reserved": 0, "memory_allocated": 0,
        "max_memory_allocated": 0, "reset_peak_memory_stats": None, "empty_cache": None,
        "get_device_properties": named, "get_device_capability": (9, 0),
        "is_bf16_supported": True,
    }  # fmt: skip
    fakes: dict[str, Any] = {
        **{name: lambda *_given, answer=answer, **_: answer for name, answer in answers.items()},
        **dict.fromkeys(generators, global_generator),
        "synchronize": wait,
        "CUDAGraph": lambda: Graph(on),
        "graph": record,
        "graph_pool_handle": object,
        "get_device_name": lambda device=0: f"{named.name} {on.resolved(device).index}",
    }
    if torch.cuda.Stream is STREAM:  # else a test watches what its own are asked for
        fakes |= {"Stream": lambda device: device, "stream": on_stream}
        fakes["current_stream"] = lambda _device: on.stream
    with (
        patch.multiple(torch.cuda, **fakes),
        patch.object(
            Tensor,
            "_make_wrapper_subclass",
            lambda *given, device=None, **options: wrapper(*given, **options),
        ),
        patch.object(torch.backends.cuda, "is_flash_attention_available", lambda: True),
        patch.object(torch.backends.cudnn, "is_acceptable", lambda _tensor: False),
        patch.object(
            torch, "autocast", lambda _kind, *given, **options: autocast("cpu", *given, **options)
        ),
        _Functions(on),
        _Operations(on),
    ):
        yield on
