"""Tensors that stay where they are until a range of their elements is read."""

from __future__ import annotations

import math
import mmap
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mergeloom.checkpoint.open_files import open_file, read_into, will_need
from mergeloom.errors import CheckpointError
from mergeloom.types import DTYPES, DTYPES_BY_TORCH_NAME, Scratch, View, numel

if TYPE_CHECKING:
    import torch


def torch_dtype(dtype: str) -> torch.dtype:
    """torch's dtype for a safetensors name."""
    import torch

    found: torch.dtype = getattr(torch, DTYPES[dtype].torch_name)
    return found


def empty(dtype: str, count: int, scratch: Scratch, key: object) -> torch.Tensor:
    """``count`` uninitialised elements in scratch memory."""
    return as_tensor(scratch.bytes(key, count * DTYPES[dtype].bytes), dtype)


def as_tensor(data: memoryview, dtype: str) -> torch.Tensor:
    """The elements that these bytes are, 1-D, in the same memory."""
    import torch

    kind = torch_dtype(dtype)
    if not len(data):  # torch.frombuffer refuses empty buffers
        return torch.empty(0, dtype=kind)
    return torch.frombuffer(data, dtype=kind)


def as_bytes(tensor: torch.Tensor) -> memoryview:
    """The bytes of a contiguous tensor on the CPU, in the same memory."""
    import torch

    return tensor.view(torch.uint8).numpy().data if tensor.numel() else memoryview(b"")


def read_bytes(view: View, start: int, stop: int, scratch: Scratch, key: object) -> memoryview:
    """The bytes of elements [start, stop), little-endian, in the view's own dtype.

    They may live in ``scratch`` under ``key``, like the result of ``view.read``. Views that have a
    method of this name read stored elements without importing torch; all others go through
    ``view.read``.
    """
    read: Callable[..., memoryview] | None = getattr(view, "read_bytes", None)
    if read:
        return read(start, stop, scratch, key)
    return as_bytes(view.read(start, stop, scratch, key))


def stored_at(view: View, start: int) -> tuple[Path, int] | None:
    """The file and byte at which a view's elements from ``start`` on are stored one after another.

    None for a view whose elements are computed, or put together, while reading.
    """
    at: Callable[[int], tuple[Path, int] | None] | None = getattr(view, "stored_at", None)
    return at(start) if at else None


def check_range(start: int, stop: int, size: int) -> None:
    """Raise ValueError unless [start, stop) lies in a tensor of ``size`` elements."""
    if not 0 <= start <= stop <= size:
        raise ValueError(f"elements [{start}, {stop}) of a tensor of {size}")


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A dense row-major tensor: consecutive bytes of a file.

    Args:
        path: the weight file.
        offset: of the first element, in bytes from the start of the file.
        dtype: safetensors dtype name.
        shape: of the tensor.
    """

    path: Path
    offset: int
    dtype: str
    shape: tuple[int, ...]

    @property
    def saved_dtype(self) -> str:
        """What is stored."""
        return self.dtype

    @property
    def files(self) -> tuple[Path, ...]:
        """The one file it is in."""
        return (self.path,)

    def read(self, start: int, stop: int, scratch: Scratch, key: object) -> torch.Tensor:
        """Elements [start, stop) of the flattened tensor, in scratch memory."""
        return as_tensor(self.read_bytes(start, stop, scratch, key), self.dtype)

    def read_bytes(self, start: int, stop: int, scratch: Scratch, key: object) -> memoryview:
        """The bytes of these elements, in scratch memory."""
        check_range(start, stop, numel(self.shape))
        size = DTYPES[self.dtype].bytes
        buffer = scratch.bytes(key, (stop - start) * size)
        if start < stop:
            read_into(self.path, self.offset + start * size, buffer)
        return buffer

    def stored_at(self, start: int) -> tuple[Path, int]:
        """The file, and the byte of element ``start`` in it."""
        return self.path, self.offset + start * DTYPES[self.dtype].bytes

    def prefetch(self, start: int, stop: int) -> None:
        """Ask the system to read these elements ahead."""
        size = DTYPES[self.dtype].bytes
        if stop > start:
            will_need(self.path, self.offset + start * size, (stop - start) * size)


@dataclass(frozen=True, slots=True)
class StridedTensor:
    """A tensor of a pickle whose elements are not consecutive, such as a transposed matrix.

    It is read through a memory map, a few rows at a time. Such tensors are rare: the writers of
    checkpoints make tensors contiguous first.

    Args:
        path: the weight file.
        offset: of element (0, 0, …), in bytes from the start of the file.
        dtype: safetensors dtype name.
        shape: of the tensor.
        stride: elements from one index to the next along each axis, not negative.
    """

    path: Path
    offset: int
    dtype: str
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def saved_dtype(self) -> str:
        """What is stored."""
        return self.dtype

    @property
    def files(self) -> tuple[Path, ...]:
        """The one file it is in."""
        return (self.path,)

    def read(self, start: int, stop: int, scratch: Scratch, key: object) -> torch.Tensor:
        """Elements [start, stop) of the flattened tensor, copied into scratch memory."""
        check_range(start, stop, numel(self.shape))
        out = empty(self.dtype, stop - start, scratch, key)
        if start < stop:
            _copy_range(self._map(), start, stop, out)
        return out

    def _map(self) -> torch.Tensor:
        """The whole tensor over a private memory map of the bytes it spans."""
        import torch

        last = sum((n - 1) * s for n, s in zip(self.shape, self.stride, strict=True))
        page = self.offset - self.offset % mmap.ALLOCATIONGRANULARITY
        end = self.offset + (last + 1) * DTYPES[self.dtype].bytes
        try:
            file = open_file(self.path)
            # A private writable map, because torch warns about memory that it may not write to.
            # mmap duplicates the descriptor, and refuses a range beyond the end of the file.
            memory = mmap.mmap(file.fd, end - page, access=mmap.ACCESS_COPY, offset=page)
        except OSError as error:
            raise CheckpointError(f"{self.path} cannot be read: {error.strerror}") from error
        except ValueError as error:
            raise CheckpointError(f"{self.path} was changed or truncated while merging") from error
        flat = torch.frombuffer(
            memory, dtype=torch_dtype(self.dtype), offset=self.offset - page, count=last + 1
        )
        return flat.as_strided(self.shape, self.stride)

    def prefetch(self, start: int, stop: int) -> None:
        """Do nothing: the elements are scattered."""


def _copy_range(tensor: torch.Tensor, start: int, stop: int, out: torch.Tensor) -> None:
    """Copy elements [start, stop) of the flattened tensor without flattening all of it."""
    if start == 0 and stop == tensor.numel():
        out.view(tensor.shape).copy_(tensor)
        return
    row = tensor.numel() // tensor.shape[0]
    first, last = -(-start // row), stop // row  # the whole rows inside the range
    if first > last:  # the range lies inside one row
        _copy_range(tensor[last], start - last * row, stop - last * row, out)
        return
    head = first * row - start
    body = head + (last - first) * row
    if head:
        _copy_range(tensor[first - 1], row - head, row, out[:head])
    if last > first:
        rows = tensor[first:last]
        out[head:body].view(rows.shape).copy_(rows)
    if stop > last * row:
        _copy_range(tensor[last], 0, stop - last * row, out[body:])


@dataclass(frozen=True, slots=True)
class RowsOf:
    """Rows [start, stop) along the first axis of another view."""

    view: View
    start: int
    stop: int

    def __post_init__(self) -> None:
        rows = self.view.shape[0] if self.view.shape else 0
        if not 0 <= self.start <= self.stop <= rows:
            raise ValueError(f"rows [{self.start}, {self.stop}) of shape {self.view.shape}")

    @property
    def dtype(self) -> str:
        """safetensors dtype name."""
        return self.view.dtype

    @property
    def saved_dtype(self) -> str:
        """The whole view's."""
        return self.view.saved_dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the rows."""
        return (self.stop - self.start, *self.view.shape[1:])

    @property
    def files(self) -> tuple[Path, ...]:
        """The files of the whole view."""
        return self.view.files

    def read(self, start: int, stop: int, scratch: Scratch, key: object) -> torch.Tensor:
        """Elements [start, stop) of the flattened rows."""
        check_range(start, stop, numel(self.shape))
        return self.view.read(self._skip + start, self._skip + stop, scratch, key)

    def read_bytes(self, start: int, stop: int, scratch: Scratch, key: object) -> memoryview:
        """The bytes of these elements."""
        check_range(start, stop, numel(self.shape))
        return read_bytes(self.view, self._skip + start, self._skip + stop, scratch, key)

    def stored_at(self, start: int) -> tuple[Path, int] | None:
        """Where the whole view has element ``start``."""
        return stored_at(self.view, self._skip + start)

    def prefetch(self, start: int, stop: int) -> None:
        """Prefetch from the whole view."""
        self.view.prefetch(self._skip + start, self._skip + stop)

    @property
    def _skip(self) -> int:
        """Elements before the rows."""
        return self.start * math.prod(self.view.shape[1:])


@dataclass(frozen=True, slots=True, eq=False)
class MemoryTensor:
    """A view over a torch tensor in memory. Two of them are equal when they are the same object.

    Raises:
        CheckpointError: the tensor is sparse, on the meta device, or of an unsupported dtype.
    """

    tensor: torch.Tensor

    def __post_init__(self) -> None:
        kind, layout = str(self.tensor.dtype), str(self.tensor.layout)
        if kind.removeprefix("torch.") not in DTYPES_BY_TORCH_NAME:
            raise CheckpointError(f"tensors of dtype {kind} cannot be merged or copied")
        if layout != "torch.strided" or self.tensor.is_meta:
            kind = "meta" if self.tensor.is_meta else layout.removeprefix("torch.")
            raise CheckpointError(f"a {kind} tensor has no plain values to read")

    @property
    def dtype(self) -> str:
        """safetensors dtype name."""
        return DTYPES_BY_TORCH_NAME[str(self.tensor.dtype).removeprefix("torch.")].name

    @property
    def saved_dtype(self) -> str:
        """The tensor's own."""
        return self.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the tensor."""
        return tuple(self.tensor.shape)

    @property
    def files(self) -> tuple[Path, ...]:
        """No file."""
        return ()

    def read(self, start: int, stop: int, scratch: Scratch, key: object) -> torch.Tensor:
        """Elements [start, stop) of the flattened tensor, always a copy in scratch memory."""
        check_range(start, stop, self.tensor.numel())
        out = empty(self.dtype, stop - start, scratch, key)
        if start < stop:
            _copy_range(self.tensor.detach(), start, stop, out)
        return out

    def prefetch(self, start: int, stop: int) -> None:
        """Do nothing: it is in memory."""


def permuted(view: View, axes: tuple[int, ...]) -> View:
    """The same tensor with its axes in another order; nothing is read or moved.

    Raises:
        CheckpointError: the view is not a tensor as a file or a state dict holds it.
    """
    if isinstance(view, MemoryTensor):
        return MemoryTensor(view.tensor.permute(axes))
    if isinstance(view, StoredTensor):
        stride = tuple(math.prod(view.shape[axis + 1 :]) for axis in range(len(view.shape)))
    elif isinstance(view, StridedTensor):
        stride = view.stride
    else:
        raise CheckpointError(f"a {type(view).__name__} has no axes to reorder")
    return StridedTensor(
        view.path,
        view.offset,
        view.dtype,
        tuple(view.shape[axis] for axis in axes),
        tuple(stride[axis] for axis in axes),
    )
