"""Pickles written and read without importing anything that they name. `torch_format` is the only caller.

Writing takes plain values and the node types below. Reading gives stand-ins for an allow-list of names and
refuses every other name, so nothing in a foreign pickle is ever called.
"""

import io
import pickle
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

from checkpoints_conversion.untrusted import told
from reasonforge.errors import RequestError


@dataclass(frozen=True)
class Global:
    """A class or function, by name."""

    module: str
    name: str


@dataclass(frozen=True)
class Call:
    """The result of calling a global."""

    function: Global
    arguments: tuple[Any, ...]


@dataclass(frozen=True)
class Instance:
    """An object made without its constructor, then given its state."""

    cls: Global
    state: Any


@dataclass(frozen=True)
class Persistent:
    """A value that the reader looks up elsewhere: torch's way to point at a storage."""

    identity: tuple[Any, ...]


@dataclass(frozen=True)
class Items:
    """A dict, by its pairs: its keys may be nodes, which no dict of ours could hash."""

    pairs: tuple[tuple[Any, Any], ...]


class StandIn:
    """Stands for an object whose class was allowed: its name, arguments and state, and no behaviour."""

    module = ""
    name = ""
    arguments: tuple[Any, ...] = ()
    state: Any = None

    def __new__(cls, *arguments: Any) -> "StandIn":
        """Keep the arguments."""
        made = super().__new__(cls)
        made.arguments = arguments
        return made

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __setitem__(self, key: Any, value: Any) -> None:
        """Items of a dict subclass are dropped: nothing here needs them."""


def dumps(value: Any) -> bytes:
    """A pickle of protocol 2, which torch's restricted loader reads too.

    Takes None, bool, int, float, str, tuple, list, dict and the node types of this module; TypeError for others.
    """
    out = bytearray(b"\x80\x02")
    _emit(value, out, {})
    return bytes(out + b".")


def _emit(value: Any, out: bytearray, memo: dict[Any, int]) -> None:
    if isinstance(value, bool) or value is None:
        out += {None: b"N", True: b"\x88", False: b"\x89"}[value]
    elif isinstance(value, int):
        _emit_int(value, out)
    elif isinstance(value, float):
        out += b"G" + struct.pack(">d", value)
    elif isinstance(value, str | Global):
        _emit_shared(value, out, memo)
    elif isinstance(value, tuple):
        _emit_tuple(value, out, memo)
    elif isinstance(value, list):
        out += b"](" if value else b"]"
        for item in value:
            _emit(item, out, memo)
        out += b"e" if value else b""
    elif isinstance(value, dict):
        _emit_items(value.items(), out, memo)
    else:
        _emit_node(value, out, memo)


def _emit_node(value: Any, out: bytearray, memo: dict[Any, int]) -> None:
    if isinstance(value, Call):
        _emit(value.function, out, memo)
        _emit_tuple(value.arguments, out, memo)
        out += b"R"
    elif isinstance(value, Instance):
        _emit(value.cls, out, memo)
        out += b")\x81"
        _emit(value.state, out, memo)
        out += b"b"
    elif isinstance(value, Items):
        _emit_items(value.pairs, out, memo)
    elif isinstance(value, Persistent):
        _emit_tuple(value.identity, out, memo)
        out += b"Q"
    else:
        raise TypeError(f"cannot be pickled here: {type(value).__name__}")


def _emit_items(pairs: Iterable[tuple[Any, Any]], out: bytearray, memo: dict[Any, int]) -> None:
    out += b"}("
    for key, item in pairs:
        _emit(key, out, memo)
        _emit(item, out, memo)
    out += b"u"


def _emit_int(value: int, out: bytearray) -> None:
    if 0 <= value < 256:
        out += b"K" + bytes([value])
    elif -(2**31) <= value < 2**31:
        out += b"J" + struct.pack("<i", value)
    else:
        encoded = pickle.encode_long(value)
        out += b"\x8a" + bytes([len(encoded)]) + encoded


def _emit_tuple(value: tuple[Any, ...], out: bytearray, memo: dict[Any, int]) -> None:
    if len(value) > 3:
        out += b"("
    for item in value:
        _emit(item, out, memo)
    out += (b")", b"\x85", b"\x86", b"\x87")[len(value)] if len(value) <= 3 else b"t"


def _emit_shared(value: str | Global, out: bytearray, memo: dict[Any, int]) -> None:
    """A text or a global, written in full the first time and by its number after that."""
    if value in memo:
        out += b"j" + struct.pack("<I", memo[value])
        return
    if isinstance(value, Global):
        out += f"c{value.module}\n{value.name}\n".encode()
    else:
        encoded = value.encode()
        out += b"X" + struct.pack("<I", len(encoded)) + encoded
    memo[value] = len(memo)
    out += b"r" + struct.pack("<I", memo[value])


class _OrderedDict(dict[Any, Any]):
    """Stands for collections.OrderedDict, made empty: a sequence of pairs would bypass the check of keys."""

    def __init__(self) -> None:
        super().__init__()


class _Reader(pickle._Unpickler):
    """Python's own reader in Python, not C: the C one asks for any amount of memory that a few bytes name.

    It is at most two times slower. Opcodes that no checkpoint has are left out, and keys are checked: hashing a tuple
    in a tuple in a tuple, a hundred thousand deep, would end the process.
    """

    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = {}

    def __init__(self, data: bytes, allow: Callable[[str, str], Any], where: str):
        super().__init__(io.BytesIO(data))
        self._allow, self._where = allow, where

    def find_class(self, module: str, name: str) -> Any:
        found = self._allow(module, name)
        if found is None:
            raise RequestError(
                self._where,
                f"its pickle names {told(f'{module}.{name}')}, which no checkpoint needs and which could run code when "
                "loaded",
                "do not load this checkpoint; get it from its source again",
            )
        return _OrderedDict if found is dict else found

    def persistent_load(self, identity: Any) -> Any:
        return Persistent(identity if isinstance(identity, tuple) else (identity,))


def _checked(opcode: bytes, keys: Callable[[Any], Iterable[Any]]) -> Callable[[Any], None]:
    """What an opcode does, once the keys that it will hash are known to be harmless."""
    load = pickle._Unpickler.dispatch[opcode[0]]

    def checked(reader: Any) -> None:
        for key in keys(reader):
            parts = key if isinstance(key, tuple) else (key,)
            if len(parts) > _MOST_PARTS or any(isinstance(part, tuple | frozenset) for part in parts):
                raise ValueError("a key of many parts")
        load(reader)

    return checked


_MOST_PARTS = 16
_LEFT_OUT = {
    pickle.EXT1[0], pickle.EXT2[0], pickle.EXT4[0], pickle.INST[0], pickle.OBJ[0], pickle.NEWOBJ_EX[0],
    pickle.BYTEARRAY8[0], pickle.NEXT_BUFFER[0], pickle.READONLY_BUFFER[0],
}  # fmt: skip
_Reader.dispatch = {
    **{opcode: load for opcode, load in pickle._Unpickler.dispatch.items() if opcode not in _LEFT_OUT},
    pickle.SETITEM[0]: _checked(pickle.SETITEM, lambda reader: reader.stack[-2:-1]),
    pickle.SETITEMS[0]: _checked(pickle.SETITEMS, lambda reader: reader.stack[::2]),
    pickle.DICT[0]: _checked(pickle.DICT, lambda reader: reader.stack[::2]),
    pickle.ADDITEMS[0]: _checked(pickle.ADDITEMS, lambda reader: reader.stack),
    pickle.FROZENSET[0]: _checked(pickle.FROZENSET, lambda reader: reader.stack),
}


_BROKEN = (
    pickle.UnpicklingError, EOFError, ValueError, KeyError, IndexError, AttributeError, TypeError, OverflowError,
    MemoryError, RecursionError, ImportError, struct.error,
)  # fmt: skip


def loads(data: bytes, allow: Callable[[str, str], Any], where: str) -> Any:
    """Read a pickle whose every name `allow(module, name)` answers with a stand-in, or with None to refuse it.

    Raises RequestError, naming `where`, on a refused name and on anything that is no pickle.
    """
    try:
        return _Reader(data, allow, where).load()
    except _BROKEN as error:
        kind = type(error).__name__
        raise RequestError(where, f"not a readable pickle ({kind}): damaged or not a checkpoint's") from None


def stand_in(module: str, name: str) -> type[StandIn]:
    """The stand-in class for a name."""
    return type(name.rpartition(".")[2] or name, (StandIn,), {"module": module, "name": name})
