"""Headers of ``torch.save`` files (``.bin``, ``.pt``, ``.pth``), without torch and its trust."""

from __future__ import annotations

import io
import os
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

from mergeloom.checkpoint.pickle_machine import MAX_PICKLE, PickleError, PickleMachine
from mergeloom.checkpoint.pickle_names import NAMES, PickledTensor, Storage, storage_of
from mergeloom.checkpoint.report import Report
from mergeloom.checkpoint.safetensors_header import lfs_pointer
from mergeloom.checkpoint.views import StoredTensor, StridedTensor
from mergeloom.errors import listing

WRAPPERS = ("state_dict", "model_state_dict", "model", "module", "params_ema", "params")
"""Keys under which training programs put the weights, in the order they are looked for.

Where a file has averaged weights beside the last ones, the averaged ones are those to use.
"""

TRAINING = ("optim", "lr_sched", "sched", "scaler", "rng", "grad")
"""How the keys of what is only needed to train on begin."""

WRAPPING_MODULES = ("module.", "_orig_mod.")
"""What DataParallel and torch.compile put before every name."""

_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
_MAX_DIRECTORY = 16 * 2**20
_DAMAGED = "It is damaged: download it again"


def read_pickle(
    path: Path, shown: str, report: Report
) -> dict[str, StoredTensor | StridedTensor] | None:
    """Read which tensors a torch file holds and where, running nothing that is in it.

    Args:
        path: the file.
        shown: how messages call it.
        report: receives every mistake; None is returned if there was one.
    """
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            start = file.read(min(size, 1024))
            if lfs_pointer(start, size, shown, report):
                return None
            if foreign := _foreign(start, size):
                report.error(f"{shown} {foreign}")
                return None
            file.seek(0)
            read = _read_zip if start.startswith(b"PK") else _read_legacy
            value, offsets = read(file, size)
            return _tensors(_unwrap(value, shown, report), offsets, path, size)
    except PickleError as error:
        report.error(f"{shown} {error}")
    except OSError as error:
        report.error(f"{shown} cannot be read: {error.strerror or error}")
    return None


def _foreign(start: bytes, size: int) -> str:
    """What the file is instead, judged by its first bytes, or an empty text."""
    if size == 0:
        return f"is empty. {_DAMAGED}"
    if start.startswith((b"PK", b"\x80")):
        return ""
    if start.startswith(b"GGUF"):
        return "is a GGUF file: convert it to safetensors first"
    if start.startswith(b"\x89HDF"):
        return "is an HDF5 file: convert it to safetensors first"
    if start[257:262] == b"ustar" or start.startswith((b"sys_info\0", b"storages\0", b"pickle\0")):
        return "is in the tar format of torch before 0.1.10: save it again with a newer torch"
    return "is not a file written by torch.save: it is neither a zip archive nor a pickle"


# --- the zip format (torch >= 1.6) ---


class _Bounded(io.RawIOBase):
    """Lets ``zipfile`` read no more at once than the directory of a checkpoint can need."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def read(self, size: int = -1) -> bytes:
        if size > _MAX_DIRECTORY:
            raise PickleError("is a zip archive with too long a directory")
        return self._file.read(_MAX_DIRECTORY if size < 0 else size)


def _read_zip(file: BinaryIO, size: int) -> tuple[object, Mapping[str, tuple[int, int]]]:
    """The pickled value, and storage key → (offset, bytes) of its data."""
    try:
        with zipfile.ZipFile(_Bounded(file)) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, struct.error, ValueError, OverflowError) as e:
        if isinstance(e, PickleError):
            raise
        raise PickleError(f"is a truncated or damaged zip archive. {_DAMAGED}") from e
    pickles = [e for e in entries if e.filename.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise PickleError("is a zip archive without torch's data.pkl")
    folder = pickles[0].filename.removesuffix("data.pkl")
    names = {entry.filename for entry in entries}
    if folder + "constants.pkl" in names:
        raise PickleError("is a TorchScript program: save its state_dict() instead")
    if len(names) < len(entries):
        raise PickleError("is a zip archive with two entries of the same name")
    where = {
        e.filename.removeprefix(folder): _locate(file, e, size)
        for e in entries
        if e.filename.startswith((folder + "data/", folder + "data.pkl", folder + "byteorder"))
    }
    if "byteorder" in where and _content(file, where.pop("byteorder")) != b"little":
        raise PickleError("is written in big-endian byte order: save it on another machine")
    pickle = _content(file, where.pop("data.pkl"))
    value = PickleMachine(io.BytesIO(pickle), len(pickle), NAMES, storage_of).load()
    return value, {name.removeprefix("data/"): place for name, place in where.items()}


def _locate(file: BinaryIO, entry: zipfile.ZipInfo, size: int) -> tuple[int, int]:
    """Offset and length of an entry's bytes, from the header in front of them."""
    if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1:
        raise PickleError(f"has the compressed entry {entry.filename}: save it again with torch")
    file.seek(entry.header_offset)
    header = file.read(30)
    if len(header) < 30 or not header.startswith(b"PK\x03\x04"):
        raise PickleError(f"is a damaged zip archive at {entry.filename}. {_DAMAGED}")
    name_length, extra_length = struct.unpack("<HH", header[26:])
    offset = entry.header_offset + 30 + name_length + extra_length
    if entry.file_size != entry.compress_size or offset + entry.file_size > size:
        raise PickleError(f"is a zip archive whose entry {entry.filename} ends outside of it")
    return offset, entry.file_size


def _content(file: BinaryIO, place: tuple[int, int]) -> bytes:
    offset, length = place
    if length > MAX_PICKLE:
        raise PickleError(f"holds a pickle of {length:,} bytes; the most is {MAX_PICKLE:,}")
    file.seek(offset)
    return file.read(length)


# --- the legacy format (torch < 1.6) ---


def _read_legacy(file: BinaryIO, size: int) -> tuple[object, Mapping[str, tuple[int, int]]]:
    """The pickled value, and storage key → (offset, bytes) of its data.

    The file is five pickles (magic number, protocol, system, value, storage keys), then for each
    key the number of elements in eight bytes and the elements.
    """
    storages: dict[str, Storage] = {}

    def remember(identifier: object) -> Storage:
        storage = storage_of(identifier)
        known = storages.setdefault(storage.key, storage)
        if known.dtype != storage.dtype:
            raise PickleError("uses one storage with two dtypes")
        return storage

    machine = PickleMachine(file, size, NAMES, remember)
    if machine.load() != _MAGIC:
        raise PickleError("is a pickle that torch.save did not write")
    if machine.load() != _PROTOCOL:
        raise PickleError("is written in an unknown version of torch's format")
    system = machine.load()
    if isinstance(system, dict) and system.get("little_endian") is False:
        raise PickleError("is written in big-endian byte order: save it on another machine")
    value, keys = machine.load(), machine.load()
    if not isinstance(keys, list):
        raise PickleError(f"has a damaged list of storages. {_DAMAGED}")
    offsets: dict[str, tuple[int, int]] = {}
    place = file.tell()
    for key in keys:
        storage = storages.get(key) if isinstance(key, str) else None
        if storage is None:
            raise PickleError(f"has a storage that no tensor uses. {_DAMAGED}")
        file.seek(place)
        length = int.from_bytes(file.read(8), "little") * storage.dtype.bytes
        if place + 8 + length > size:
            raise PickleError(
                f"is truncated: storage {key} needs {place + 8 + length:,} bytes, the file has "
                f"{size:,}. Download it again"
            )
        offsets[key] = (place + 8, length)
        place += 8 + length
    return value, offsets


# --- both ---


def _unwrap(value: object, shown: str, report: Report) -> dict[str, PickledTensor]:
    """The state dict in a pickled value: itself, or in the dictionary that training saved."""
    unused: list[str] = []
    for _ in range(4):
        if not isinstance(value, dict):
            break
        own = {k: v for k, v in value.items() if isinstance(v, PickledTensor)}
        nests = [key for key in value if _holds_tensors(value[key])]
        if not nests or any(tensor.shape for tensor in own.values()):
            unused += map(_shown, nests)
            break
        inner = _weights_among(nests, shown, report)
        unused += [_shown(key) for key in (*own, *nests) if key != inner]
        value = value[inner]
    if isinstance(value, PickledTensor):
        raise PickleError("holds one tensor without a name, where a state dict was expected")
    items = value.items() if isinstance(value, dict) else ()
    found = {k: v for k, v in items if isinstance(v, PickledTensor)}
    if not found:
        raise PickleError("holds no tensors by name, where a state dict was expected")
    if not all(isinstance(name, str) for name in found):
        raise PickleError("holds tensors whose names are not text")
    if unused:
        report.warn(f"{shown}: the tensors under {listing(unused)} are not used")
    return _without_wrapping_modules(found)


def _weights_among(nests: list[object], shown: str, report: Report) -> object:
    """The key of the dictionary of weights among several of tensors."""
    usual = next((key for key in WRAPPERS if key in nests), None)
    if usual is not None:
        return usual
    weights = [key for key in nests if not str(key).lower().startswith(TRAINING)]
    if len(weights) != 1:
        kinds = listing(map(_shown, nests))
        raise PickleError(f"holds several dictionaries of tensors ({kinds}), none of them under "
                          f"a usual name ({', '.join(WRAPPERS)})")  # fmt: skip
    report.warn(f"{shown}: the weights are those under {_shown(weights[0])}")
    return weights[0]


def _holds_tensors(value: object) -> bool:
    """Whether it is a dictionary with tensors in it, or in dictionaries in it, three deep."""
    level: list[object] = [value]
    for _ in range(3):
        # Each once: a small pickle can hold one dictionary a million times in another one.
        found = {id(item): item for item in level if isinstance(item, dict)}
        level = [item for nest in found.values() for item in nest.values()]
        if any(isinstance(item, PickledTensor) for item in level):
            return True
    return False


def _without_wrapping_modules(found: dict[str, PickledTensor]) -> dict[str, PickledTensor]:
    """Names as the model has them, without the modules that distributed training put around it."""
    for prefix in WRAPPING_MODULES * 2:
        if all(name.startswith(prefix) for name in found):
            found = {name.removeprefix(prefix): tensor for name, tensor in found.items()}
    return found


def _shown(key: object) -> str:
    return str(key)[:80]


def _tensors(
    found: dict[str, PickledTensor],
    offsets: Mapping[str, tuple[int, int]],
    path: Path,
    size: int,
) -> dict[str, StoredTensor | StridedTensor]:
    """Where the elements of every tensor are in the file."""
    views: dict[str, StoredTensor | StridedTensor] = {}
    for name, tensor in found.items():
        storage = tensor.storage
        place, length = offsets.get(storage.key, (0, -1))
        needed = storage.skip + storage.count * storage.dtype.bytes
        if storage.count == 0 and length < 0:
            place, length = size, 0  # torch may leave out a storage without elements
        if needed > length:
            raise PickleError(
                f"is truncated or damaged: tensor {name[:120]!r} needs {needed:,} bytes of storage "
                f"{storage.key[:40]}, which has {max(length, 0):,}. {_DAMAGED}"
            )
        first = place + storage.skip + tensor.start * tensor.dtype.bytes
        dtype, shape = tensor.dtype.name, tensor.shape
        if _is_dense(shape, tensor.stride):
            views[name] = StoredTensor(path, first, dtype, shape)
        else:
            views[name] = StridedTensor(path, first, dtype, shape, tensor.stride)
    return views


def _is_dense(shape: tuple[int, ...], stride: tuple[int, ...]) -> bool:
    """Whether the elements are consecutive and row-major; axes of one element do not matter."""
    if 0 in shape:
        return True
    step = 1
    for count, distance in zip(reversed(shape), reversed(stride), strict=True):
        if count != 1 and distance != step:
            return False
        step *= count
    return True
