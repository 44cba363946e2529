"""Files that are never half written, and the facts that a measured number needs beside it."""

import contextlib
import errno
import hashlib
import json
import os
import platform
import secrets
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch

from .errors import InputError

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # disk, quota, or largest size of a file


class StorageError(OSError):
    """A file that cannot be written, told in one sentence; see `storage_error`."""


def storage_error(path: Path, error: OSError, size: int | None, kept: str) -> StorageError:
    """What to raise for `error`, with `size` bytes that were to be written, and what is whole."""
    text = f"{path} cannot be written: {error.strerror or error}"
    if error.errno in NO_ROOM:
        wanted = "" if size is None else f"it needs {megabytes(size)}, "
        text += f"; {wanted}{megabytes(free_space(path))} are free there"
    told = StorageError(f"{text}; {kept}")
    told.errno = error.errno
    return told


def free_space(path: str | Path) -> int:
    """Bytes that can still be written to the file system of `path`, which need not exist yet."""
    path = Path(path).absolute()
    return shutil.disk_usage(next(p for p in (path, *path.parents) if p.exists())).free


def megabytes(size: int) -> str:
    """10^6 bytes, so that what is wanted and what is there can be compared."""
    return f"{size / 1e6:.1f} MB" if size >= 1e5 else f"{size} bytes"


def require_space(folder: str | Path, size: int, what: str, key: str) -> None:
    """Raise ValueError where `folder`, named by `key`, has no room for `size` bytes of `what`."""
    free = free_space(folder)
    if free < size:
        raise InputError(
            f"{key} {folder} has no room for {what}: about {megabytes(size)} are needed, "
            f"{megabytes(free)} are free there; free some or name another place"
        )


@contextlib.contextmanager
def atomic_file(
    path: str | Path, size: int | None = None, earlier: str | Path | None = None
) -> Iterator[BinaryIO]:
    """A binary file that takes the name `path` only once it is whole and on disk.

    A new file gets the permissions that the umask leaves, a replaced one keeps its own.

    Args:
        size: bytes that will be written, where that is known; an error tells them.
        earlier: takes the file that was at `path`, which at no moment is without one.

    Raises:
        StorageError: the disk is full, or the like; an earlier file is then as it was.
    """
    with atomic_path(path, size, earlier) as temporary, open(temporary, "wb") as stream:
        yield stream


@contextlib.contextmanager
def atomic_path(
    path: str | Path, size: int | None = None, earlier: str | Path | None = None
) -> Iterator[Path]:
    """As `atomic_file`, for what writes by name: the name of an empty file beside `path`, with its
    ending."""
    path = Path(path)
    mode = path.stat().st_mode & 0o7777 if path.is_file() else None
    kept = "nothing was written" if mode is None else "the file that was there is unchanged"
    # A name that is as long as a file system takes leaves no room for more.
    temporary = path.with_name(f".{path.name[:40]}.{secrets.token_hex(4)}{path.suffix[:10]}")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(temporary, flags, 0o666 if mode is None else mode & 0o666 | 0o600))
    except OSError as error:
        raise storage_error(path, error, size, kept) from None
    filled = False
    try:
        yield temporary
        filled = True
        with open(temporary, "r+b") as stream:
            os.fsync(stream.fileno())
        if mode is not None:
            os.chmod(temporary, mode)
            if earlier is not None:
                _keep(path, Path(earlier))
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        ours = isinstance(error, OSError) and not isinstance(error, StorageError)
        if ours and (filled or error.errno in (*NO_ROOM, errno.EIO)):
            raise storage_error(path, error, size, kept) from None
        raise


def _keep(path: Path, earlier: Path) -> None:
    """Let `earlier` be the file that is at `path`, too."""
    if earlier.exists() and path.samefile(earlier):
        return  # somebody was killed right after this
    link = earlier.with_name(f".{earlier.name}.{secrets.token_hex(4)}")
    try:
        os.link(path, link)
    except OSError:  # a file system without links; for a moment only `earlier` is there
        os.replace(path, earlier)
        return
    os.replace(link, earlier)


def _sync_folder(folder: Path) -> None:
    """Have the names in `folder` on disk, too, where the system can."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def atomic_write(path: str | Path, content: bytes | memoryview | str) -> None:
    """Write a whole file: temporary file, fsync, rename. Raises StorageError."""
    data = content.encode() if isinstance(content, str) else content
    with atomic_file(path, len(data)) as stream:
        stream.write(data)


def write_json(path: str | Path, record: Any) -> None:
    """Write `record` as indented JSON, atomically. NaN and infinity are refused (ValueError)."""
    atomic_write(path, json.dumps(record, indent=2, allow_nan=False) + "\n")


def adopt_file(source: Path, path: Path) -> None:
    """Let a file that is complete, in the same file system, take the name `path` once on disk."""
    handle = os.open(source, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # Windows asks for a handle that writes
            os.fsync(handle)
    finally:
        os.close(handle)
    os.replace(source, path)
    _sync_folder(path.parent)


def sha256(path: str | Path) -> str:
    """Hexadecimal digest of a file."""
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def require_folder(path: str | Path, key: str) -> None:
    """Make the folder that `key` names. Raises ValueError where files cannot be put into it."""
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        usable = os.access(path, os.W_OK)
    except OSError:
        usable = False
    if not usable:
        raise InputError(f"{key} {path} must be a folder that can be written")


def environment(device: torch.device | str = "cpu") -> dict[str, Any]:
    """Hardware, versions and numeric settings that a measurement depends on."""
    device = torch.device(device)
    facts = {
        "device": cpu_name(),
        "cpu_threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "platform": f"{platform.system()} {platform.machine()}",
        "commit": git_commit(),
    }
    if device.type == "cuda":
        facts |= {
            "device": torch.cuda.get_device_name(device),
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
            "tf32_matmul": torch.backends.cuda.matmul.allow_tf32,
            "tf32_conv": torch.backends.cudnn.allow_tf32,
        }
    if device.type == "mps":
        facts["device"] += " GPU (MPS)"
    return facts


def cpu_name() -> str:
    """The processor's model name where the system tells it."""
    return _first_match("/proc/cpuinfo", "model name") or platform.processor() or "CPU"


def git_commit() -> str | None:
    """Commit of the source tree ("-dirty" where files differ), None outside git."""
    root = Path(__file__).resolve().parent.parent
    return _git(root, "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*")


def _git(root: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None


def _first_match(path: str, key: str) -> str | None:
    try:
        lines = Path(path).read_text().splitlines()
    except OSError:
        return None
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith(key)), None)
