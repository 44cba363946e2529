"""What this machine gives to loading: cores, memory, shared memory, and how processes start."""

import multiprocessing
import os
import sys
from collections.abc import Iterator
from multiprocessing.context import BaseContext
from pathlib import Path

try:
    import resource
except ImportError:  # Windows
    resource = None

PROC = Path("/proc")
CGROUPS = Path("/sys/fs/cgroup")
SHARED_MEMORY = Path("/dev/shm")  # through which loader processes hand over batches on Linux

# limits, usage, and the part of the usage that the system takes back when memory is short
CGROUP_FILES = {
    1: (("memory.limit_in_bytes",), "memory.usage_in_bytes", "total_inactive_file"),
    2: (("memory.max", "memory.high"), "memory.current", "inactive_file"),
}


def cpu_count() -> int:
    """CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def start_context() -> BaseContext:
    """How loader processes are started.

    By fork on Linux, although Python's own way there is forkserver from 3.14 on: forked processes
    are there at once, share the libraries' memory, and inherit a cache in memory; this project
    runs no thread that a fork could cut off. On other systems it is Python's own way, spawn; and
    a program that has set another method than Python's own gets that one. What goes to the
    processes can be pickled, so all methods work.
    """
    own, *_ = multiprocessing.get_all_start_methods()
    chosen = multiprocessing.get_start_method(allow_none=True) or own
    if chosen == own and sys.platform == "linux" and hasattr(os, "fork"):
        chosen = "fork"
    return multiprocessing.get_context(chosen)


def free_memory() -> float:
    """Bytes of memory that this process can still get; infinite where the system does not tell.

    The least of what the machine has left, what every control group around this process leaves
    (containers and batch systems limit memory so), and the limit of its address space.
    """
    return min(_machine_left(), _address_space_left(), *_cgroups_left(), float("inf"))


def shared_memory_left() -> float:
    """Bytes that loader processes can still share; infinite where no file system limits them."""
    try:
        status = os.statvfs(SHARED_MEMORY)
    except (OSError, AttributeError):  # not there; not on Windows
        return float("inf")
    return float(status.f_bavail * status.f_frsize)


def _machine_left() -> float:
    for line in _lines(PROC / "meminfo"):
        if line.startswith("MemAvailable:"):
            return 1024.0 * int(line.split()[1])
    return float("inf")


def _address_space_left() -> float:
    if resource is None:
        return float("inf")
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    used = " ".join(_lines(PROC / "self/statm")).split()
    if limit == resource.RLIM_INFINITY or not used:
        return float("inf")
    return max(0.0, float(limit) - int(used[0]) * resource.getpagesize())


def _cgroups_left() -> Iterator[float]:
    """What every control group leaves, from that of this process up to the outermost."""
    for line in _lines(PROC / "self/cgroup"):
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0" and not controllers:
            version, root = 2, CGROUPS
        elif "memory" in controllers.split(","):
            version, root = 1, CGROUPS / "memory"
        else:
            continue
        # A container sees its own group as the root; then the path leads nowhere, or above it.
        parts = [part for part in path.split("/") if part not in ("", "..")]
        for depth in range(len(parts), -1, -1):
            yield _group_left(root.joinpath(*parts[:depth]), version)


def _group_left(group: Path, version: int) -> float:
    limit_files, usage_file, reclaimable = CGROUP_FILES[version]
    limits = [_number(group / name) for name in limit_files]
    usage = _number(group / usage_file)
    limit = min((value for value in limits if value is not None), default=None)
    if limit is None or usage is None:
        return float("inf")
    cached = [line.split()[1] for line in _lines(group / "memory.stat") if _is(line, reclaimable)]
    return max(0.0, float(limit) - usage + sum(map(int, cached)))


def _is(line: str, key: str) -> bool:
    return line.split(" ", 1)[0] == key


def _number(path: Path) -> int | None:
    """The number in a file; None where it is absent or says "max"."""
    text = "".join(_lines(path)[:1]).strip()
    return int(text) if text.isdecimal() else None


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except (OSError, UnicodeDecodeError):
        return []
