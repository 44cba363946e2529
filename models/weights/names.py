"""The names of functions and classes in pickles: text that is never looked up, only judged."""

import pickle
import sys
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING

from .rules import one_line

MAX_TEXT = 1000  # characters of a name or a key; longer ones are no names

# Names of the standard library that training scripts leave in checkpoints. Any other one, and any
# function of another package, has no business there: such a file is refused.
_HARMLESS = frozenset(
    f"{module}.{name}"
    for module, names in {
        "_codecs": "encode",
        "argparse": "Namespace",
        "builtins": "bool bytearray bytes complex dict float frozenset getattr int list object "
        "range set slice str tuple",
        "collections": "ChainMap Counter OrderedDict defaultdict deque",
        "copyreg": "__newobj__ __newobj_ex__ _reconstructor",
        "datetime": "date datetime time timedelta timezone",
        "decimal": "Decimal",
        "fractions": "Fraction",
        "functools": "partial",
        "pathlib": "Path PosixPath PurePath PurePosixPath PureWindowsPath WindowsPath",
        "re": "_compile",
        "types": "SimpleNamespace",
        "typing": "Any Dict List Optional Tuple Union",
        "uuid": "UUID",
    }.items()
    for name in names.split()
)
_FUNCTIONS = frozenset(
    """
    numpy.core.multiarray.scalar numpy._core.multiarray.scalar numpy.dtype numpy.ndarray
    numpy.random.__randomstate_ctor numpy.random._pickle.__randomstate_ctor
    numpy.random._pickle.__generator_ctor numpy.random._pickle.__bit_generator_ctor
    torch.device torch.serialization._get_layout torch._utils._rebuild_sparse_tensor
    torch._utils._rebuild_qtensor
    """.split()
)


class UnfitError(ValueError):
    """What is wrong with a file that can be read; the text goes on after the file's name."""


class RefusedError(UnfitError):
    """The stream names something that no checkpoint needs."""

    def __init__(self, name: str) -> None:
        super().__init__(
            f"is a pickle that calls {one_line(name)}, which is not loaded because reading it "
            "would run code; save the state dict alone"
        )


class Name:
    """A module's attribute, as text."""

    __slots__ = ("text",)

    def __init__(self, module: str, name: str) -> None:
        if len(module) + len(name) > MAX_TEXT:
            raise pickle.UnpicklingError("a name of endless length")
        # Up to protocol 2 Python writes the names of Python 2, such as commands.Popen.
        default = IMPORT_MAPPING.get(module, module), name
        self.text = ".".join(NAME_MAPPING.get((module, name), default))

    def check(self) -> None:
        """Raise RefusedError for a part of the standard library that is not known as harmless."""
        top = self.text.partition(".")[0]
        if top in sys.stdlib_module_names and self.text not in _HARMLESS:
            raise RefusedError(self.text)

    def check_call(self) -> None:
        """Raise RefusedError for a function that is not known; a class has a capital letter."""
        last = self.text.rpartition(".")[2].lstrip("_")
        if not (last[:1].isupper() or self.text in _HARMLESS or self.text in _FUNCTIONS):
            raise RefusedError(self.text)
