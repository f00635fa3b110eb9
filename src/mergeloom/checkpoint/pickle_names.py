"""What the names in a checkpoint's pickle stand for: tensors described, never loaded."""

from __future__ import annotations

import math
from dataclasses import dataclass

from mergeloom.checkpoint.pickle_machine import OPAQUE, Opaque, PickleError
from mergeloom.types import DTYPES_BY_TORCH_NAME, DType

_MAX_ELEMENTS = 2**48  # a stride of 0 can repeat one number for ever


@dataclass(frozen=True, slots=True)
class Storage:
    """A run of bytes in the file that tensors are views of.

    ``count`` elements of ``dtype``, beginning ``skip`` bytes into the data named ``key``.
    An untyped storage has dtype U8.
    """

    key: str
    dtype: DType
    count: int
    skip: int = 0


@dataclass(frozen=True, slots=True)
class StorageType:
    """The class of a storage, which gives its dtype."""

    dtype: DType


@dataclass(frozen=True, slots=True)
class PickledTensor:
    """A tensor as a pickle describes it; ``start`` counts elements of its own dtype."""

    storage: Storage
    dtype: DType
    start: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


def is_size(value: object) -> bool:
    """Whether it is an integer that a file can hold."""
    return type(value) is int and 0 <= value < 2**63


def _rebuild(
    storage: object, start: object, shape: object, stride: object, *_ignored: object
) -> PickledTensor:
    """``_rebuild_tensor`` and ``_v2``: a view of a typed storage."""
    if not isinstance(storage, Storage):
        raise PickleError("holds a tensor without a storage")
    metadata = _ignored[2] if len(_ignored) > 2 else None
    return _tensor(storage, storage.dtype, start, shape, stride, metadata)


def _rebuild_v3(
    storage: object,
    start: object,
    shape: object,
    stride: object,
    _requires_grad: object,
    _hooks: object,
    dtype: object,
    metadata: object = None,
) -> PickledTensor:
    """``_rebuild_tensor_v3``: a view of an untyped storage in a dtype of its own."""
    if not isinstance(storage, Storage) or not isinstance(dtype, DType):
        raise PickleError("holds a tensor without a storage or of an unknown dtype")
    return _tensor(storage, dtype, start, shape, stride, metadata)


def _tensor(
    storage: Storage, dtype: DType, start: object, shape: object, stride: object, metadata: object
) -> PickledTensor:
    if metadata:
        raise PickleError("holds a tensor with a pending conjugation or negation")
    if (
        not isinstance(start, int)
        or not isinstance(shape, tuple)
        or not isinstance(stride, tuple)
        or len(shape) != len(stride)
        or len(shape) > 64
        or not all(map(is_size, (start, *shape, *stride)))
        or math.prod(shape) >= _MAX_ELEMENTS
    ):
        raise PickleError("holds a tensor with an impossible shape, stride or offset")
    tensor = PickledTensor(storage, dtype, start, shape, stride)
    end = 0
    if 0 not in shape:
        end = start + 1 + sum((n - 1) * s for n, s in zip(shape, stride, strict=True))
    if end * dtype.bytes > storage.count * storage.dtype.bytes:
        raise PickleError(f"holds a tensor of shape {list(shape)} that reaches beyond its storage")
    return tensor


def _parameter(data: object, *_rest: object) -> PickledTensor:
    """``Parameter(data, requires_grad, …)``: the tensor itself."""
    if not isinstance(data, PickledTensor):
        raise PickleError("holds a parameter that is no tensor")
    return data


_TENSOR_TYPE, _PARAMETER_TYPE = object(), _parameter
_REBUILDERS = (_rebuild, _rebuild_v3, _parameter)


def _from_type(
    function: object, kind: object, arguments: object, _state: object = None
) -> PickledTensor:
    """``_rebuild_from_type_v2``: a tensor or parameter that carries Python attributes."""
    if kind not in (_TENSOR_TYPE, _PARAMETER_TYPE) or not isinstance(arguments, tuple):
        raise PickleError("holds a tensor of an unknown subclass")
    for known in _REBUILDERS:
        if function is known:
            return known(*arguments)
    raise PickleError("holds a tensor that is rebuilt by something unknown")


def _ordered_dict(items: object = ()) -> dict[object, object]:
    """``OrderedDict()``, or from the list of pairs that old Pythons wrote."""
    if not isinstance(items, list | tuple):
        raise PickleError("holds a damaged pickle")
    found: dict[object, object] = {}
    for pair in items:
        if not isinstance(pair, list | tuple) or len(pair) != 2 or not isinstance(pair[0], str):
            raise PickleError("holds a damaged pickle")
        found[pair[0]] = pair[1]
    return found


def _default_dict(*_factory: object) -> dict[object, object]:
    """``defaultdict(list)``, as optimizers are saved in; its items come afterwards."""
    return {}


def _size(items: object = ()) -> tuple[object, ...]:
    """``torch.Size``."""
    if not isinstance(items, list | tuple):
        raise PickleError("holds a damaged pickle")
    return tuple(items)


def _opaque(*_arguments: object) -> Opaque:
    """A harmless object that is not needed."""
    return OPAQUE


_STORAGES = {
    "Double": "float64",
    "Float": "float32",
    "Half": "float16",
    "BFloat16": "bfloat16",
    "ComplexFloat": "complex64",
    "Long": "int64",
    "Int": "int32",
    "Short": "int16",
    "Char": "int8",
    "Byte": "uint8",
    "Bool": "bool",
}


def _names() -> dict[tuple[str, str], object]:
    names: dict[tuple[str, str], object] = {
        ("torch._utils", "_rebuild_tensor"): _rebuild,
        ("torch._utils", "_rebuild_tensor_v2"): _rebuild,
        ("torch._utils", "_rebuild_tensor_v3"): _rebuild_v3,
        ("torch._utils", "_rebuild_parameter"): _parameter,
        ("torch._utils", "_rebuild_parameter_with_state"): _parameter,
        ("torch._tensor", "_rebuild_from_type_v2"): _from_type,
        ("torch", "Tensor"): _TENSOR_TYPE,
        ("torch._tensor", "Tensor"): _TENSOR_TYPE,
        ("torch.nn.parameter", "Parameter"): _PARAMETER_TYPE,
        ("torch.storage", "UntypedStorage"): StorageType(DTYPES_BY_TORCH_NAME["uint8"]),
        ("torch", "Size"): _size,
        ("torch", "device"): _opaque,
        ("collections", "OrderedDict"): _ordered_dict,
        ("collections", "defaultdict"): _default_dict,
        ("collections", "Counter"): _opaque,
        ("_codecs", "encode"): _opaque,
    }
    for module in ("builtins", "__builtin__"):
        kinds = "set frozenset bytearray complex dict list int long float".split()
        names |= {(module, kind): _opaque for kind in kinds}
    for prefix, dtype in _STORAGES.items():
        for module in ("torch", "torch.cuda"):
            names[module, f"{prefix}Storage"] = StorageType(DTYPES_BY_TORCH_NAME[dtype])
    return names | {("torch", name): dtype for name, dtype in DTYPES_BY_TORCH_NAME.items()}


NAMES = _names()
"""(module, name) → what it stands for. Whatever is not here is refused."""


def storage_of(identifier: object) -> Storage:
    """The storage that a persistent id names, in either of torch's formats."""
    if not isinstance(identifier, tuple) or len(identifier) < 5 or identifier[0] != "storage":
        raise PickleError("refers to something that is not a storage")
    _, kind, key, _location, count, *rest = identifier
    if not isinstance(kind, StorageType) or not isinstance(key, str | int) or not is_size(count):
        raise PickleError("holds a storage of an unknown kind")
    storage = Storage(str(key), kind.dtype, count)
    view = rest[0] if rest else None
    if view is None:
        return storage
    # A part of a storage, as torch < 0.4 wrote it: (key of the part, first element, count).
    if not isinstance(view, tuple) or len(view) != 3 or not all(map(is_size, view[1:])):
        raise PickleError("holds a damaged view of a storage")
    if view[1] + view[2] > count:
        raise PickleError("holds a view that reaches beyond its storage")
    return Storage(str(key), kind.dtype, view[2], view[1] * kind.dtype.bytes)
