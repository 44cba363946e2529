"""The yaml files of a configuration and the `_BASE_` files behind them."""

import difflib
from collections.abc import Hashable
from pathlib import Path

import yaml


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
        raise ValueError(f"{path}: _BASE_ leads back to the file itself")
    if path.is_dir():
        raise ValueError(f"config {path} is a folder; name one of its .yaml files")
    if not path.is_file():
        origin = f", named as _BASE_ in {seen[-1]}" if seen else ""
        raise FileNotFoundError(f"config {path} does not exist{origin}{_namesake(path)}")
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _Loader) or {}
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is not valid yaml: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path}: the top level is a {type(content).__name__}, not KEY: value")
    bases = content.pop("_BASE_", [])
    bases = [bases] if isinstance(bases, str) else bases
    if not isinstance(bases, list) or not all(isinstance(base, str) for base in bases):
        raise ValueError(f"{path}: _BASE_ is {bases!r}; accepted: a file or a list of files")
    files = []
    for base in bases:
        files += read_chain(path.parent / base, (*seen, path.resolve()))
    return [*files, (path, content)]


def _namesake(path: Path) -> str:
    others = {other.stem: other for other in path.parent.glob("*.yaml")}
    near = difflib.get_close_matches(path.stem, others, n=1, cutoff=0.7)
    return f"; did you mean {others[near[0]]}?" if near else ""
