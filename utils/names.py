"""Names of files that are made from other files, and do not overwrite one another."""

import re
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import PurePath


def distinct_files(sources: Sequence[str], suffix: str) -> list[str]:
    """A file name for each of `sources`, all different even where a file system ignores case.

    Args:
        sources: paths of files.
        suffix: ending of the new names, such as ".png".

    Returns:
        relative paths with "/", none with "..": `x.png` for `a/x.jpg` where no two sources have
        that stem; else all in the sources' folders, `a/x.png`; where that is not enough,
        `a/x.jpg.png`, and numbers where only upper and lower case differ.
    """
    parts = [_parts(source) for source in sources]
    stems = [[*folders, PurePath(name).stem] for *folders, name in parts]
    for choice in ([stem[-1:] for stem in stems], stems, parts):
        names = ["/".join(names) + suffix for names in choice]
        if _are_apart(names):
            return names
    return _numbered(names, suffix)


def file_stem(text: str, longest: int = 100) -> str:
    """`text` as a part of a file name: without what file systems refuse, and not too long."""
    safe = re.sub(r'[/\\:*?"<>|\x00-\x1f]+', "-", text).strip(". -")
    return safe.encode()[:longest].decode(errors="ignore")


def _parts(source: str) -> list[str]:
    path = PurePath(source)
    return [part for part in path.parts if part not in (path.anchor, ".", "..")]


def _fold(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def _folders(names: Sequence[str]) -> Iterator[str]:
    for name in names:
        yield from (_fold(folder.as_posix()) for folder in PurePath(name).parents)


def _are_apart(names: Sequence[str]) -> bool:
    """Whether all names can stand in one folder: no two alike, none the folder of another."""
    files = {_fold(name) for name in names}
    return len(files) == len(names) and files.isdisjoint(_folders(names))


def _numbered(names: Sequence[str], suffix: str) -> list[str]:
    used, asked = set(_folders(names)), {_fold(name) for name in names}
    result = []
    for name in names:
        number, candidate = 1, name
        while _fold(candidate) in used or (number > 1 and _fold(candidate) in asked):
            number += 1
            candidate = f"{name.removesuffix(suffix)}~{number}{suffix}"
        used.add(_fold(candidate))
        result.append(candidate)
    return result
