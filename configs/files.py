"""The yaml files of a configuration and the `_BASE_` files behind them."""

import difflib
import shlex
from collections.abc import Hashable
from pathlib import Path

import yaml

from .errors import InputError

# Endings of folded configurations, and how the file is called that goes on top of the network's.
_FOLDED = {"_aug": "trainaug_", "_trainval": "trainval", "_batch32": "batch32_"}


class _Loader(yaml.SafeLoader):
    """Plain data; refuses a key that stands twice, of which the first would be lost."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen = set()
        for name, _ in node.value:
            key = self.construct_object(name, deep=True)
            if isinstance(key, Hashable):
                if key in seen:
                    raise yaml.YAMLError(f"{key} stands twice, in line {name.start_mark.line + 1}")
                seen.add(key)
        return super().construct_mapping(node, deep)


def read_chain(path: Path, seen: tuple[Path, ...] = ()) -> list[tuple[Path, dict]]:
    """The yaml files behind `path`, its bases first, each with its content.

    Raises:
        FileNotFoundError: there is no such file, or a base of it is not there.
        ValueError: one of the files is not a mapping in plain yaml, or its own base.
    """
    if path.resolve() in seen:
        raise InputError(f"{path}: _BASE_ leads back to the file itself")
    if path.is_dir():
        raise InputError(f"config {path} is a folder; name one of its .yaml files")
    if not path.is_file():
        origin = f", named as _BASE_ in {seen[-1]}" if seen else ""
        hint = _folded(path, bool(seen)) or _namesake(path)
        raise FileNotFoundError(f"config {path} does not exist{origin}{hint}")
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _Loader) or {}
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(f"{path} is not valid yaml: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise InputError(f"{path}: the top level is a {type(content).__name__}, not KEY: value")
    bases = content.pop("_BASE_", [])
    bases = [bases] if isinstance(bases, str) else bases
    if not isinstance(bases, list) or not all(isinstance(base, str) for base in bases):
        raise InputError(f"{path}: _BASE_ is {bases!r}; accepted: a file or a list of files")
    files = []
    for base in bases:
        files += read_chain(path.parent / base, (*seen, path.resolve()))
    return [*files, (path, content)]


def _folded(path: Path, is_base: bool) -> str:
    """What a configuration is now called that used to have a file and is one of two files now."""
    for ending, overlay in _FOLDED.items():
        plain = path.with_name(path.name.replace(f"{ending}.yaml", ".yaml"))
        if plain.name == path.name or not plain.is_file():
            continue
        # the last word of an overlay's name begins those of its networks; one has two families
        network = path.stem.replace("rtlinearformer", "rtformer")
        for other in sorted(path.parent.glob(f"{overlay}*.yaml")):
            if network.startswith(other.stem.removeprefix(overlay)):
                if is_base:
                    return f"; write _BASE_: [{plain.name}, {other.name}] with their folder"
                return f"; write --cfg {shlex.quote(str(plain))} --cfg {shlex.quote(str(other))}"
    return ""


def _namesake(path: Path) -> str:
    others = {other.stem: other for other in path.parent.glob("*.yaml")}
    near = difflib.get_close_matches(path.stem, others, n=1, cutoff=0.7)
    return f"; did you mean {others[near[0]]}?" if near else ""
