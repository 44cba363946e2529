"""Why a file cannot be read, before it is opened."""

import errno
import functools
import os
import stat
import unicodedata
from pathlib import Path


def file_problem(path: Path, under: str = "") -> str | None:
    """Why `path` cannot be read, as the end of a sentence; None if it is a file with content.

    `under` follows "does not exist".
    """
    try:
        status = path.stat()
    except OSError as error:
        if error.errno == errno.ELOOP:
            return "is a symbolic link that leads back to itself"
        if path.is_symlink():
            return f"is a symbolic link to {os.readlink(path)}, which does not exist"
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            return f"does not exist{under}{_near_name(path)}"
        return f"cannot be read ({error.strerror})"
    if stat.S_ISREG(status.st_mode):
        return None if status.st_size else "is empty (0 bytes)"
    return "is a folder, not a file" if stat.S_ISDIR(status.st_mode) else "is not a file"


def _near_name(path: Path) -> str:
    """A hint at a file whose name only looks the same."""
    try:
        names = _folded(str(path.parent), path.parent.stat().st_mtime_ns)
    except OSError:
        return ""
    near = names.get(_fold(path.name))
    if near is None:
        return ""
    same = unicodedata.normalize("NFC", near) == unicodedata.normalize("NFC", path.name)
    how = "other Unicode code points" if same else "upper and lower case differ"
    return f"; there is {near} ({how})"


@functools.lru_cache(maxsize=64)
def _folded(folder: str, changed: int) -> dict[str, str]:
    return {_fold(name): name for name in sorted(os.listdir(folder))}


def _fold(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()
