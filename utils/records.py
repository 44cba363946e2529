"""Files that are never half written, and the facts that a measured number needs beside it."""

import contextlib
import hashlib
import json
import os
import platform
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch


@contextlib.contextmanager
def atomic_file(path: str | Path) -> Iterator[BinaryIO]:
    """A binary file that takes the name `path` only once it is whole and on disk."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def atomic_write(path: str | Path, content: bytes | str) -> None:
    """Write a whole file: temporary file, fsync, rename."""
    with atomic_file(path) as stream:
        stream.write(content.encode() if isinstance(content, str) else content)


def write_json(path: str | Path, record: Any) -> None:
    """Write `record` as indented JSON, atomically. NaN and infinity are refused (ValueError)."""
    atomic_write(path, json.dumps(record, indent=2, allow_nan=False) + "\n")


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
        raise ValueError(f"{key} {path} must be a folder that can be written")


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
