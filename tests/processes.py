"""Waiting for what other processes do, and a disk that is full for this one."""

import contextlib
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest


def wait_for(
    condition: Callable[[], bool], process: subprocess.Popen, seconds: float = 600
) -> None:
    """Return once `condition()` holds; AssertionError if `process` ends or time runs out before."""
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.02)


@contextlib.contextmanager
def small_files(size: int) -> Iterator[None]:
    """Inside, no file can grow beyond `size` bytes, as on a disk that is full."""
    resource = pytest.importorskip("resource", reason="limits of a process are POSIX")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@contextlib.contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    """A file system of `size`, such as 64k, in `folder`. Skips where it cannot be mounted."""
    disk = folder / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("this user cannot mount a file system")
    try:
        yield disk
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def limited(size: int) -> Callable[[], None]:
    """What a child does first: no file of it can grow beyond `size` bytes."""
    resource = pytest.importorskip("resource", reason="limits of a process are POSIX")
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
