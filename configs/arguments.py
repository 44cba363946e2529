"""--cfg and KEY VALUE pairs on the command line of a tool."""

import argparse
import shlex
import sys
from collections.abc import Sequence
from typing import NoReturn

from .errors import InputError
from .loader import COMMAND_LINE, meant


def parse_arguments(
    parser: argparse.ArgumentParser,
    *,
    required: bool = True,
    about: str = "configuration file",
    words: Sequence[str] | None = None,
) -> argparse.Namespace:
    """Read the command line by `parser`, to which --cfg and the pairs are added.

    Args:
        required: whether --cfg must be given.
        about: what --cfg is, for the help.
        words: the command line without the program's name; by default that of the process.

    Returns:
        what `parser` makes of it, with `cfg`, the files in their order, and `opts`, the words of
        the pairs.

    Raises:
        ValueError: one sentence on what is wrong with it.
    """
    words = sys.argv[1:] if words is None else list(words)

    def refuse(message: str) -> NoReturn:
        raise InputError(f"{COMMAND_LINE}: {message} (-h shows what is accepted)")

    parser.error = refuse
    parser.add_argument(
        "--cfg",
        action="append",
        default=[],
        required=required,
        metavar="YAML",
        help=f"{about}; given again, a later file replaces what earlier ones set",
    )
    parser.add_argument(
        "opts", nargs="*", metavar="KEY VALUE", help="settings that replace those of the files"
    )
    args, unknown = parser.parse_known_intermixed_args(words)
    for word in [word for word in unknown if word.startswith("-")]:
        name, _, value = word.lstrip("-").partition("=")
        if len(keys := meant(name)) == 1:
            after = [*words[words.index(word) + 1 :], "VALUE"][0]
            value = value or ("VALUE" if after.startswith("--") else after)
            refuse(f"{word}: settings have no dashes; write {keys[0]} {shlex.quote(value)}")
    if unknown:
        refuse(f"{unknown[0]} is not known")
    return args


def config_words(args: argparse.Namespace) -> list[str]:
    """The words of a command line that give the same configuration again."""
    return [word for path in args.cfg for word in ("--cfg", path)] + args.opts
