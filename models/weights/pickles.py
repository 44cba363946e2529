"""Pickles as data: no name in a file is imported, no object of it is built or called.

The stream is decoded by the standard library's `pickletools` and replayed on a small stack machine
whose values are plain containers, numbers and text, and for everything else an `Inert` node that
only remembers its kind and its parts. What a reader of weights needs (tensors, numpy arrays) is
made by the constructors it passes in; they receive data and are the only functions that run.
"""

import pickle
import pickletools
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any, BinaryIO

from .names import MAX_TEXT, Name, RefusedError, UnfitError

MAX_OPERATIONS = 2_000_000  # of one pickle; the largest real checkpoints have some 100,000
MAX_ARGUMENTS = 64  # of a call; also the dimensions of a tensor

# What decoding a damaged stream can raise.
DAMAGE = (
    pickle.UnpicklingError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError,
    EOFError, MemoryError, RecursionError,
)  # fmt: skip


class Inert:
    """Stands for an object of `kind`: the parts that the stream gave it, and no behaviour."""

    __slots__ = ("args", "entries", "kind", "state")

    def __init__(self, kind: str, args: tuple = ()) -> None:
        self.kind, self.args = kind, args
        self.entries: dict | None = None  # None: never given any
        self.state: Any = None


_MARK = object()  # between what is below and the parts of the next container
Constructors = Mapping[str, Callable[..., Any]]


def read_pickle(
    stream: BinaryIO, constructors: Constructors, persistent: Callable[[Any], Any] | None = None
) -> Any:
    """The value of one pickle, which ends where the stream then stands.

    Args:
        constructors: name -> function of the arguments that the stream gives to that name.
        persistent: function of a persistent id (torch: a storage).

    Raises:
        UnfitError: a name that no checkpoint needs, or more than MAX_OPERATIONS.
        One of DAMAGE: the stream is not a whole pickle.
    """
    machine = _Machine(constructors, persistent)
    source = SimpleNamespace(read=stream.read, readline=stream.readline)  # no tell: it is slow
    for count, (operation, argument, _) in enumerate(pickletools.genops(source)):
        if count > MAX_OPERATIONS:
            raise UnfitError(f"is too long; a pickle of {count} operations is not read")
        if operation.name == "STOP":
            return machine.stack.pop()
        if operation.name not in _STEPS:
            raise pickle.UnpicklingError(f"operation {operation.name} is not known")
        _STEPS[operation.name](machine, argument)
    raise pickle.UnpicklingError("the stream ends before the pickle does")


class _Machine:
    """The stack machine of Python's pickle, on data."""

    def __init__(self, constructors: Constructors, persistent: Callable | None) -> None:
        self.constructors, self.persistent = constructors, persistent
        self.stack: list = []
        self.memo: dict[int, Any] = {}

    def _pop_mark(self, _: Any = None) -> list:
        """The values above the last mark, which goes too."""
        for index in range(len(self.stack) - 1, -1, -1):
            if self.stack[index] is _MARK:
                values = self.stack[index + 1 :]
                del self.stack[index:]
                return values
        raise pickle.UnpicklingError("no mark")

    # the stack itself

    def _mark(self, _: Any) -> None:
        self.stack.append(_MARK)

    def _pop(self, _: Any) -> None:
        self.stack.pop()

    def _dup(self, _: Any) -> None:
        self.stack.append(self.stack[-1])

    def _proto(self, _: Any) -> None:
        pass

    def _frame(self, length: int) -> None:
        if length >> 40:
            raise pickle.UnpicklingError("a frame longer than any file")

    def _put(self, index: int) -> None:
        if not 0 <= index < 1 << 32:  # larger ones could be made to collide as keys
            raise pickle.UnpicklingError("a memo of endless size")
        self.memo[index] = self.stack[-1]

    _binput = _long_binput = _put

    def _memoize(self, _: Any) -> None:
        self.memo[len(self.memo)] = self.stack[-1]

    def _get(self, index: int) -> None:
        self.stack.append(self.memo[index])

    _binget = _long_binget = _get

    # containers

    def _list(self, _: Any) -> None:
        self.stack.append(self._pop_mark())

    def _tuple(self, _: Any) -> None:
        self.stack.append(tuple(self._pop_mark()))

    def _tuple_of(self, count: int) -> None:
        values = self.stack[-count:]
        if len(values) < count:
            raise pickle.UnpicklingError("too few values")
        self.stack[-count:] = [tuple(values)]

    def _tuple1(self, _: Any) -> None:
        self._tuple_of(1)

    def _tuple2(self, _: Any) -> None:
        self._tuple_of(2)

    def _tuple3(self, _: Any) -> None:
        self._tuple_of(3)

    def _dict(self, _: Any) -> None:
        values = self._pop_mark()
        self.stack.append({})
        self._set(self.stack[-1], values)

    def _frozenset(self, _: Any) -> None:
        values = self._pop_mark()
        self.stack.append(Inert("builtins.frozenset"))
        self._add(self.stack[-1], values)

    def _appends(self, _: Any) -> None:
        values = self._pop_mark()
        self._add(self.stack[-1], values)

    _additems = _appends

    def _append(self, _: Any) -> None:
        value = self.stack.pop()
        self._add(self.stack[-1], [value])

    def _setitems(self, _: Any) -> None:
        values = self._pop_mark()
        self._set(self.stack[-1], values)

    def _setitem(self, _: Any) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._set(self.stack[-1], [key, value])

    @staticmethod
    def _add(target: Any, values: list) -> None:
        if type(target) is list:
            target.extend(values)
        elif not isinstance(target, Inert):  # whose items nobody needs
            raise pickle.UnpicklingError(f"items for a {type(target).__name__}")

    @staticmethod
    def _set(target: Any, values: list) -> None:
        if isinstance(target, Inert):
            target.entries = {} if target.entries is None else target.entries
            target = target.entries
        if type(target) is not dict or len(values) % 2:
            raise pickle.UnpicklingError(f"entries for a {type(target).__name__}")
        for key, value in zip(values[::2], values[1::2], strict=True):
            target[_key(key)] = value

    # names and objects

    def _persid(self, key: Any) -> None:
        if self.persistent is None:
            raise pickle.UnpicklingError("a persistent id")
        self.stack.append(self.persistent(key))

    def _binpersid(self, _: Any) -> None:
        self._persid(self.stack.pop())

    def _global(self, argument: str) -> None:
        self._push_name(*argument.split(" ", 1))

    def _stack_global(self, _: Any) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        self._push_name(module, name)

    def _push_name(self, module: Any, name: Any) -> None:
        if not (isinstance(module, str) and isinstance(name, str)):
            raise pickle.UnpicklingError("a name that is not text")
        self.stack.append(Name(module, name))
        self.stack[-1].check()

    def _reduce(self, _: Any) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        self.stack.append(self._call(function, arguments))

    def _inst(self, argument: str) -> None:
        values = self._pop_mark()
        self._global(argument)
        self.stack.append(self._call(self.stack.pop(), tuple(values)))

    def _obj(self, _: Any) -> None:
        function, *values = self._pop_mark()
        self.stack.append(self._call(function, tuple(values)))

    def _newobj(self, _: Any) -> None:
        arguments, kind = self.stack.pop(), self.stack.pop()
        self.stack.append(self._new(kind, arguments))

    def _newobj_ex(self, _: Any) -> None:
        self.stack.pop()  # keyword arguments
        self._newobj(None)

    def _build(self, _: Any) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        if isinstance(target, Inert):
            target.state = state
        elif type(target) is not dict:  # an OrderedDict's attributes are not needed
            raise pickle.UnpicklingError(f"a state for a {type(target).__name__}")

    def _new(self, kind: Any, arguments: Any) -> Any:
        if not isinstance(kind, Name) or type(arguments) is not tuple:
            raise pickle.UnpicklingError("an object without a class")
        if kind.text in self.constructors:
            if len(arguments) > MAX_ARGUMENTS:
                raise pickle.UnpicklingError(f"{len(arguments)} arguments")
            return self.constructors[kind.text](*arguments)
        return Inert(kind.text, arguments)

    def _call(self, function: Any, arguments: Any) -> Any:
        if isinstance(function, Inert):
            raise RefusedError(f"an object of {function.kind}")
        if not isinstance(function, Name) or type(arguments) is not tuple:
            raise pickle.UnpicklingError("a call of something that is not a name")
        name = function.text
        if name in ("copyreg._reconstructor", "copyreg.__newobj__", "copyreg.__newobj_ex__"):
            if len(arguments) > MAX_ARGUMENTS:
                raise pickle.UnpicklingError(f"{len(arguments)} arguments")
            return self._new(arguments[0], arguments[1:])
        if name == "builtins.getattr":  # a method of an unknown class is as inert as the class
            owner = arguments[0]
            if not isinstance(owner, Name) or owner.text.partition(".")[0] == "builtins":
                raise RefusedError(name)
        if name not in self.constructors:
            function.check_call()
        return self._new(function, arguments)


def _key(key: Any) -> Any:
    """A key whose hash and comparison are cheap whatever the stream says.

    Tuples, long texts and large integers can be made slow to hash, or to collide: such a key, like
    an object, counts as one of its own.
    """
    if isinstance(key, Name):
        return key.text
    if isinstance(key, (str, bytes)) and len(key) <= MAX_TEXT:
        return key
    if isinstance(key, int) and key.bit_length() <= 64:
        return key
    return key if key is None or isinstance(key, (float, Inert)) else Inert("key")


_PUSHED = """
    INT BININT BININT1 BININT2 LONG LONG1 LONG4 STRING BINSTRING SHORT_BINSTRING BINBYTES
    SHORT_BINBYTES BINBYTES8 BYTEARRAY8 UNICODE SHORT_BINUNICODE BINUNICODE BINUNICODE8 FLOAT
    BINFLOAT
""".split()
_CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
    "EMPTY_DICT": dict,
    "EMPTY_SET": lambda: Inert("builtins.set"),
}
_STEPS: dict[str, Callable[[_Machine, Any], None]] = {
    **{name: lambda machine, value: machine.stack.append(value) for name in _PUSHED},
    **{
        name: lambda machine, _, make=make: machine.stack.append(make())
        for name, make in _CONSTANTS.items()
    },
    **{
        operation.name: getattr(_Machine, f"_{operation.name.lower()}")
        for operation in pickletools.opcodes
        if hasattr(_Machine, f"_{operation.name.lower()}")
    },
}
