"""A pickle interpreter that can build plain values and descriptions of tensors, nothing else.

The standard library's unpickler can be told which names to refuse, but not how much memory to
take: a five-byte pickle makes it allocate 32 GB for its memo table. This one does what
``torch.save`` writes (protocols 2 to 5) and refuses every other opcode. Nothing named in a file
is ever imported or called: the few allowed names stand for functions of ``pickle_names``.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO

MAX_PICKLE = 256 * 2**20
"""Bytes of pickle that are read at most. A checkpoint of 100,000 tensors has 15 MB."""

_MAX_STEPS = 4_000_000  # a tensor takes about 35
_MAX_TEXT = 16 * 2**20


class PickleError(ValueError):
    """The pickle is damaged or asks for something that is not a tensor or a container."""


class Opaque:
    """Stands for an object whose value does not matter here, such as a device."""


OPAQUE = Opaque()
_MARK = object()
_SCALAR_KEYS = (str, int, float, bool, bytes, type(None))


class PickleMachine:
    """Runs one pickle after another from a file.

    Args:
        file: positioned at a pickle; after ``load`` it stands right behind its end.
        size: of the file: no length beyond it is believed.
        names: (module, name) → what an allowed name stands for.
        persistent: turns a persistent id (a storage) into a value.
    """

    def __init__(
        self,
        file: BinaryIO,
        size: int,
        names: Mapping[tuple[str, str], object],
        persistent: Callable[[object], object],
    ) -> None:
        self._file = file
        self._left = min(size, MAX_PICKLE)
        self._names = names
        self._persistent = persistent
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}
        self._steps = 0

    def load(self) -> Any:
        """Run to the end of the next pickle and return its value.

        Raises:
            PickleError: with a message that completes "<file> …".
        """
        self._stack, self._memo, self._steps = [], {}, 0
        try:
            while self._steps < _MAX_STEPS:
                self._steps += 1
                code = self._read(1)[0]
                if code == _STOP:
                    return self._stack.pop()
                step = _STEPS.get(code)
                if step is None:
                    raise PickleError(f"holds a pickle with the refused opcode 0x{code:02x}")
                step(self)
        except (IndexError, KeyError, struct.error, UnicodeDecodeError) as error:
            # An opcode that needs more on the stack, or an unknown memo entry.
            raise PickleError("holds a damaged pickle") from error
        raise PickleError(f"holds a pickle of more than {_MAX_STEPS:,} steps")

    # --- reading ---

    def _read(self, count: int) -> bytes:
        if count > self._left:
            raise PickleError("holds a damaged pickle: it ends too early or is too long")
        self._left -= count
        data = self._file.read(count)
        if len(data) < count:
            raise PickleError("holds a damaged pickle: it ends too early")
        return data

    def _number(self, count: int) -> int:
        return int.from_bytes(self._read(count), "little")

    def _line(self) -> str:
        line = self._file.readline(1024)
        self._left -= len(line)
        if not line.endswith(b"\n"):
            raise PickleError("holds a damaged pickle: a name is too long")
        return line[:-1].decode("utf-8")

    # --- the stack ---

    def push(self, value: object) -> None:
        """Put a value on the stack."""
        self._stack.append(value)

    def pop_mark(self) -> list[Any]:
        """Take everything above the last mark off the stack."""
        for place in range(len(self._stack) - 1, -1, -1):
            if self._stack[place] is _MARK:
                items = self._stack[place + 1 :]
                del self._stack[place:]
                return items
        raise PickleError("holds a damaged pickle")

    # --- steps ---

    def _global(self) -> None:
        module = self._line()
        self._push_name(module, self._line())

    def _stack_global(self) -> None:
        name, module = self._stack.pop(), self._stack.pop()
        self._push_name(module, name)

    def _push_name(self, module: object, name: object) -> None:
        if not isinstance(module, str) or not isinstance(name, str):
            raise PickleError("holds a damaged pickle")
        try:
            self.push(self._names[module, name])
        except KeyError:
            shown = f"{module}.{name}"[:200].encode("ascii", "backslashreplace").decode()
            message = (
                f"asks for {shown}, which is refused: only dense tensors are loaded. Take its "
                "safetensors, or, if you trust its author, save the state_dict alone with torch"
            )
            raise PickleError(message) from None

    def _reduce(self) -> None:
        arguments, function = self._stack.pop(), self._stack.pop()
        if not callable(function) or not isinstance(arguments, tuple):
            raise PickleError("holds a pickle that calls something that is not a tensor")
        # What a call copies counts as steps, or few bytes could ask for much memory.
        self._steps += sum(len(a) for a in arguments if isinstance(a, list | tuple))
        try:
            self.push(function(*arguments))
        except TypeError as error:  # a wrong number of arguments
            raise PickleError("holds a tensor with damaged arguments") from error

    def _build(self) -> None:
        # The state of an OrderedDict (torch's _metadata) or of a parameter: nothing we need, so
        # it is dropped, whatever it is.
        self._stack.pop()

    def _set_items(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if not isinstance(target, dict) or len(items) % 2:
            raise PickleError("holds a damaged pickle")
        for key, value in zip(items[::2], items[1::2], strict=True):
            # Other keys are never names of tensors, and hashing a nest of tuples could overflow.
            if isinstance(key, _SCALAR_KEYS):
                target[key] = value

    def _append(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if isinstance(target, list):
            target.extend(items)
        elif not isinstance(target, Opaque):  # a set, whose members do not matter
            raise PickleError("holds a damaged pickle")

    def _pair(self) -> list[Any]:
        value, key = self._stack.pop(), self._stack.pop()
        return [key, value]

    def _tuple(self, count: int) -> None:
        if len(self._stack) < count:
            raise PickleError("holds a damaged pickle")
        items = tuple(self._stack[-count:])
        del self._stack[-count:]
        self.push(items)

    def _dict(self) -> None:
        items = self.pop_mark()
        self.push({})
        self._set_items(items)

    def _long(self, count: int) -> None:
        if count > 64:
            raise PickleError("holds a number that is too long")
        self.push(int.from_bytes(self._read(count), "little", signed=True))

    def _text(self, count: int) -> None:
        if count > _MAX_TEXT:
            raise PickleError("holds a text that is too long")
        self.push(self._read(count).decode("utf-8"))

    def _old_text(self, count: int) -> None:
        # Python 2's str: names of tensors are ASCII; anything else keeps one letter per byte.
        self.push(self._read(count).decode("latin-1"))

    def _put(self, place: int) -> None:
        self._memo[place] = self._stack[-1]

    def _get(self, place: int) -> None:
        self.push(self._memo[place])

    def _persistent_id(self) -> None:
        self.push(self._persistent(self._stack.pop()))


_Step = Callable[[PickleMachine], object]
_STOP = ord(".")


def _steps() -> dict[int, _Step]:
    """Opcode → what it does, named as in the standard library's ``pickletools``."""
    m = PickleMachine
    steps: dict[bytes, _Step] = {
        b"\x80": lambda s: s._read(1),  # PROTO
        b"\x95": lambda s: s._read(8),  # FRAME: only a hint for buffering
        b"(": lambda s: s.push(_MARK),
        b"0": lambda s: s._stack.pop(),  # POP
        b"1": lambda s: s.pop_mark(),  # POP_MARK
        b"2": lambda s: s.push(s._stack[-1]),  # DUP
        b"N": lambda s: s.push(None),
        b"\x88": lambda s: s.push(True),
        b"\x89": lambda s: s.push(False),
        b"K": lambda s: s.push(s._number(1)),  # BININT1
        b"M": lambda s: s.push(s._number(2)),  # BININT2
        b"J": lambda s: s.push(struct.unpack("<i", s._read(4))[0]),  # BININT
        b"\x8a": lambda s: s._long(s._number(1)),  # LONG1
        b"\x8b": lambda s: s._long(s._number(4)),  # LONG4
        b"G": lambda s: s.push(struct.unpack(">d", s._read(8))[0]),  # BINFLOAT
        b"X": lambda s: s._text(s._number(4)),  # BINUNICODE
        b"\x8c": lambda s: s._text(s._number(1)),  # SHORT_BINUNICODE
        b"\x8d": lambda s: s._text(s._number(8)),  # BINUNICODE8
        b"U": lambda s: s._old_text(s._number(1)),  # SHORT_BINSTRING
        b"T": lambda s: s._old_text(s._number(4)),  # BINSTRING
        b"C": lambda s: s.push(s._read(s._number(1))),  # SHORT_BINBYTES
        b"B": lambda s: s.push(s._read(s._number(4))),  # BINBYTES
        b"\x8e": lambda s: s.push(s._read(s._number(8))),  # BINBYTES8
        b"\x96": lambda s: s.push(s._read(s._number(8))),  # BYTEARRAY8
        b"]": lambda s: s.push([]),
        b"}": lambda s: s.push({}),
        b")": lambda s: s.push(()),
        b"\x8f": lambda s: s.push(OPAQUE),  # EMPTY_SET
        b"\x85": lambda s: s._tuple(1),
        b"\x86": lambda s: s._tuple(2),
        b"\x87": lambda s: s._tuple(3),
        b"t": lambda s: s.push(tuple(s.pop_mark())),
        b"l": lambda s: s.push(s.pop_mark()),
        b"d": m._dict,
        b"a": lambda s: s._append([s._stack.pop()]),
        b"e": lambda s: s._append(s.pop_mark()),  # APPENDS
        b"\x90": lambda s: s._append(s.pop_mark()),  # ADDITEMS
        b"s": lambda s: s._set_items(s._pair()),
        b"u": lambda s: s._set_items(s.pop_mark()),  # SETITEMS
        b"q": lambda s: s._put(s._number(1)),  # BINPUT
        b"r": lambda s: s._put(s._number(4)),  # LONG_BINPUT
        b"\x94": lambda s: s._put(len(s._memo)),  # MEMOIZE
        b"h": lambda s: s._get(s._number(1)),  # BINGET
        b"j": lambda s: s._get(s._number(4)),  # LONG_BINGET
        b"c": m._global,
        b"\x93": m._stack_global,
        b"R": m._reduce,
        b"\x81": m._reduce,  # NEWOBJ: class and arguments, as for REDUCE
        b"b": m._build,
        b"Q": m._persistent_id,  # BINPERSID
    }
    return {code[0]: step for code, step in steps.items()}


_STEPS = _steps()
