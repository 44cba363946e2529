"""List files: which image belongs to which label."""

import posixpath
import re
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import NamedTuple

from ..meta import DataError
from .text import read_text

REPOSITORY_DATA = Path(__file__).resolve().parents[2] / "data"


class Entry(NamedTuple):
    """One line of a list file.

    Paths are relative to the dataset's folder and in one spelling: a/b.png for ./a//b.png.
    """

    image: str
    label: str | None
    line: int


def find_list(root: str | Path, list_file: str | Path) -> Path:
    """The list file under `root` (DATASET.ROOT), else under the repository's own `data/`.

    Raises FileNotFoundError that names both places, or says that `root` is no folder or the list
    is one.
    """
    places = [Path(root) / list_file, REPOSITORY_DATA / list_file]
    for place in places:
        if place.is_file():
            return place
    if problem := root_problem(root):
        raise FileNotFoundError(problem)
    for place in places:
        if place.is_dir():
            raise FileNotFoundError(
                f"list file {place} is a folder, not a list; DATASET.TRAIN_SET and "
                "DATASET.TEST_SET name files"
            )
    if places[0].resolve() == places[1].resolve():
        raise FileNotFoundError(f"list file {places[0]} does not exist")
    raise FileNotFoundError(f"list file {list_file} found neither as {places[0]} nor {places[1]}")


def root_problem(root: str | Path) -> str | None:
    """The sentence about a DATASET.ROOT that is no folder; None if it is one."""
    if Path(root).is_dir():
        return None
    how = "is not a folder" if Path(root).exists() else "does not exist"
    return f"DATASET.ROOT {root} {how}"


def read_list(
    path: str | Path, *, repeats: bool = False, folder: str | Path | None = None
) -> list[Entry]:
    """Read lines `image<TAB or spaces>label` or only `image`.

    Empty lines and lines that start with # are skipped. With a TAB in the line, or at its end,
    names may contain spaces. All lines have a label or none has.

    Args:
        repeats: lines may stand there several times.
        folder: the dataset's; a file of it may have a backslash in its name. Every other
            backslash separates folders, as / does. Its files also tell what a line means that is
            not separated by a TAB.

    Raises:
        DataError: not UTF-8, no entry, too many columns, an image listed twice, a path that
            leaves the dataset's folder, labels only here and there.
    """
    entries, problems = scan_list(path, repeats=repeats, folder=folder)
    if problems:
        more = f" (and {len(problems) - 1} more of its lines are bad)" if len(problems) > 1 else ""
        raise DataError(problems[0] + more)
    return entries


def scan_list(
    path: str | Path, *, repeats: bool = False, folder: str | Path | None = None
) -> tuple[list[Entry], list[str]]:
    """The good lines of a list file, as `read_list` takes them, and a sentence per bad one.

    Raises DataError where the file is not text in UTF-8.
    """
    text = read_text(path)
    entries: list[Entry] = []
    problems: list[str] = []
    seen: dict[str, Entry] = {}
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        try:
            entry = _parse_line(line, f"{path}:{number}", number, folder)
            _check_entry(entry, f"{path}:{number}", seen, entries[0] if entries else entry, repeats)
        except DataError as error:
            problems.append(str(error))
        else:
            seen.setdefault(entry.image, entry)
            entries.append(entry)
    if not entries and not problems:
        problems.append(f"{path} names no image; lines are image<TAB>label")
    return entries, problems


def _check_entry(
    entry: Entry, where: str, seen: dict[str, Entry], first: Entry, repeats: bool
) -> None:
    earlier = seen.get(entry.image)
    if earlier is not None and earlier.label != entry.label:
        raise DataError(
            f"{where}: {entry.image} stands already in line {earlier.line}, with another label"
        )
    if earlier is not None and not repeats:
        raise DataError(
            f"{where}: {entry.image} stands already in line {earlier.line}; a training list may "
            "repeat lines with DATASET.REPEATED_LINES True"
        )
    if (entry.label is None) != (first.label is None):
        raise DataError(
            f"{where}: line {first.line} has {'no label' if entry.label else 'a label'} and this "
            f"line has {'one' if entry.label else 'none'}; a list has labels everywhere or nowhere"
            f" (a name with spaces and no label needs a TAB at the line's end)"
        )


def _parse_line(line: str, where: str, number: int, folder: str | Path | None) -> Entry:
    # A TAB at the end says that the spaces before it belong to the name; one at the beginning is
    # an indentation.
    line = line.lstrip()
    fields = [field.strip() for field in line.split("\t" if "\t" in line else None)]
    fields = [field for field in fields if field]
    if "\t" not in line:
        _check_commas(line.strip(), fields[0], where, folder)
    if len(fields) > 2:
        hint = "" if "\t" in line else _meant_by(line.strip(), folder)
        raise DataError(
            f"{where}: {len(fields)} columns; a line is image<TAB>label (names with spaces need "
            f"the TAB, at the line's end where there is no label){hint}"
        )
    for field in fields:
        if "\0" in field:
            raise DataError(f"{where}: a name with a zero byte; lists are UTF-8 text")
    written = [_with_slashes(field, folder) for field in fields]
    names = [posixpath.normpath(name) for name in written]
    for name, clean in zip(written, names, strict=True):
        absolute = any(kind(name).is_absolute() for kind in (PurePosixPath, PureWindowsPath))
        absolute = absolute or bool(Path(name).drive)
        if absolute or PurePosixPath(clean).parts[:1] == ("..",):
            how = " (it is an absolute path)" if absolute else ""
            raise DataError(
                f"{where}: {name} leaves the dataset's folder{how}; paths are relative to it"
            )
    return Entry(names[0], names[1] if len(names) == 2 else None, number)


def _with_slashes(name: str, folder: str | Path | None) -> str:
    """`name` with / between folders, unless `folder` has a file of exactly this name."""
    if "\\" not in name:
        return name
    parts = PurePosixPath(name).parts
    inside = not name.startswith("/") and ".." not in parts
    if folder is not None and inside and (Path(folder) / name).is_file():
        return name
    return name.replace("\\", "/")


def _meant_by(line: str, folder: str | Path | None) -> str:
    """What a line without TAB means, going by the files that there are: the end of a sentence."""
    if folder is None:
        return ""
    if _is_file(folder, line):
        return (
            f"; there is {line}: a name with spaces needs a TAB at the line's end, or before its "
            "label"
        )
    for gap in re.finditer(r"\s+", line):
        image, label = line[: gap.start()], line[gap.end() :]
        if _is_file(folder, image) and _is_file(folder, label):
            return f"; there are {image} and {label}: put a TAB between them"
    return ""


def _check_commas(line: str, first: str, where: str, folder: str | Path | None) -> None:
    """Raise DataError for a line that has a comma or semicolon where the TAB should be."""
    for mark in ",;":
        parts = [part.strip() for part in line.split(mark)]
        if len(parts) < 2 or folder is None or any(_is_file(folder, f) for f in (first, line)):
            continue  # of names
        if all(_is_file(folder, part) or _looks_like_file(part) for part in parts[:2]):
            raise DataError(
                f"{where}: {line} is separated by {mark!r}; a line is image<TAB>label, with a TAB "
                f"between {parts[0]} and {parts[1]}"
            )


def _looks_like_file(text: str) -> bool:
    return re.fullmatch(r".+\.[A-Za-z][A-Za-z0-9]{1,4}", text) is not None


def _is_file(folder: str | Path, name: str) -> bool:
    try:
        return (Path(folder) / _with_slashes(name, folder)).is_file()
    except (OSError, ValueError):  # too long, or no name at all
        return False
