"""Decoded scenes kept in memory or on disk, shared by all loader processes, limited in size.

A scene that is not in the cache is decoded and stored; once the limit is reached, further scenes
are decoded every time. Nothing is evicted: in training every scene comes once per epoch, so that
the oldest one is also the next one needed.
"""

import contextlib
import hashlib
import mmap
import multiprocessing.reduction
import os
import struct
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .errors import InputError
from .machine import free_memory, start_context
from .transforms import Sample

try:
    import fcntl
except ImportError:  # not on Windows: there several programs may together exceed the limit
    fcntl = None

GIGA = 10**9
LEFT_FREE = 0.2  # share of the free memory that a cache in memory never takes
STAMP_BYTES = 16
ABANDONED = 3600  # seconds after which a temporary file has lost its writer


class Source(NamedTuple):
    """Which scene, in which state of its files.

    index: in the dataset.
    identity: what the scene is made of (files, label encoding), the same in every run.
    stamp: STAMP_BYTES that change whenever the files do (see `stamp_of`).
    """

    index: int
    identity: str
    stamp: bytes


def stamp_of(*facts: object) -> bytes:
    """A stamp of sizes, times and whatever else decides what a scene looks like."""
    return hashlib.blake2b(repr(facts).encode(), digest_size=STAMP_BYTES).digest()


def make_cache(kind: str, length: int, limit: float, folder: str | Path) -> "SceneCache | None":
    """The cache that DATASET.CACHE names: none, ram or disk.

    Args:
        length: scenes in the dataset.
        limit: its size in gigabytes (10^9 bytes).
        folder: of the disk cache; may be shared by datasets and programs.

    Raises:
        ValueError: another kind, or memory that cannot be had.
        OSError: the folder cannot be written.
    """
    if kind == "none":
        return None
    if kind == "ram":
        return MemoryCache(length, limit)
    if kind == "disk":
        try:
            return DiskCache(folder, limit)
        except OSError as error:
            raise OSError(
                f"DATASET.CACHE_DIR {folder} cannot be used ({error.strerror}); it must be a "
                "folder that can be written"
            ) from None
    raise InputError(f"DATASET.CACHE is {kind!r}; accepted: none, ram, disk")


NOT_SHAREABLE = (
    "DATASET.CACHE ram cannot be shared with loader processes on this system; set WORKERS 0, or "
    "DATASET.CACHE disk"
)


class SceneCache:
    """What both caches offer. Scenes come back read-only.

    shareable: whether loader processes can use it, too.
    """

    shareable = True

    def get(self, source: Source) -> Sample | None:
        """The scene, or None where it is not stored or its files have changed since."""
        raise NotImplementedError(f"{type(self).__name__} defines no get")

    def put(self, source: Source, scene: Sample) -> bool:
        """Store image and label. False where there is no room for them."""
        raise NotImplementedError(f"{type(self).__name__} defines no put")

    def usage(self) -> tuple[int, int]:
        """(scenes, bytes) stored."""
        raise NotImplementedError(f"{type(self).__name__} defines no usage")


class MemoryCache(SceneCache):
    """In memory that loader processes share with this one.

    It is no file, so neither the size of /dev/shm limits it nor does a killed run leave anything
    behind. The system hands out its pages when they are first written. Processes that are not
    forked get it handed over, which only Linux can do: see `shareable`.
    """

    COLUMNS = 6  # offset + 1, height, width, labelled, and the stamp in two halves

    def __init__(self, length: int, limit: float) -> None:
        context = start_context()
        self.capacity = int(min(limit * GIGA, (1 - LEFT_FREE) * free_memory()))
        sizes = max(1, self.capacity), 8 + length * self.COLUMNS * 8
        forks = context.get_start_method() == "fork"
        try:
            self._blocks = [SharedBlock(size, passable=not forks) for size in sizes]
        except (OSError, OverflowError, ValueError) as error:
            raise InputError(
                f"DATASET.CACHE_GB {limit:g}: the system does not reserve that much memory "
                f"({error}); use less"
            ) from None
        self.shareable = forks or all(block.passable for block in self._blocks)
        self._lock = context.Lock()
        self._map()

    def _map(self) -> None:
        memory, state = (block.memory for block in self._blocks)
        self._used = np.frombuffer(state, np.int64, 1)
        self._table = np.frombuffer(state, np.int64, offset=8).reshape(-1, self.COLUMNS)
        self._bytes = np.frombuffer(memory, np.uint8)

    def __getstate__(self) -> dict[str, Any]:
        if not self.shareable:
            raise InputError(NOT_SHAREABLE)
        kept = ("capacity", "shareable", "_blocks", "_lock")
        return {name: getattr(self, name) for name in kept}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state
        self._map()

    def get(self, source: Source) -> Sample | None:
        """See SceneCache."""
        with self._lock:
            row = self._table[source.index].tolist()
        if not row[0] or row[4:] != _halves(source.stamp):
            return None
        return _scene(self._bytes, row[0] - 1, *row[1:4])

    def put(self, source: Source, scene: Sample) -> bool:
        """See SceneCache."""
        size = _bytes_of(scene)
        with self._lock:
            offset = int(self._used[0])
            if offset + size > self.capacity:
                return False
            self._used[0] = offset + size
        first = offset
        for array in _arrays(scene):
            self._bytes[first : first + array.size] = array.reshape(-1)
            first += array.size
        with self._lock:  # whoever sees the row sees the pixels
            height, width = scene.image.shape[:2]
            labelled = scene.label is not None
            self._table[source.index] = [
                offset + 1,
                height,
                width,
                labelled,
                *_halves(source.stamp),
            ]
        return True

    def usage(self) -> tuple[int, int]:
        """See SceneCache; the bytes count versions of changed files as well."""
        with self._lock:
            return int(np.count_nonzero(self._table[:, 0])), int(self._used[0])


class SharedBlock:
    """Anonymous memory that forked processes share; `passable`: also those that it is sent to."""

    def __init__(self, size: int, passable: bool) -> None:
        self.size, self.passable = size, passable and hasattr(os, "memfd_create")
        self._handle = -1
        if self.passable:
            self._handle = os.memfd_create("scenes")
            os.truncate(self._handle, size)
        self.memory = mmap.mmap(self._handle, size)

    def __getstate__(self) -> tuple[int, Any]:
        return self.size, multiprocessing.reduction.DupFd(self._handle)

    def __setstate__(self, state: tuple[int, Any]) -> None:
        self.size, self.passable = state[0], True
        self._handle = state[1].detach()
        self.memory = mmap.mmap(self._handle, self.size)

    def __del__(self) -> None:
        if getattr(self, "_handle", -1) >= 0:
            os.close(self._handle)


class DiskCache(SceneCache):
    """One file per scene, mapped into memory when it is read; survives the run.

    Files appear by renaming, so that a reader never meets half of one. The size of all files
    together is kept in `usage`, which a lock guards against other processes. A full disk is no
    error: the scene is then not stored.
    """

    MAGIC = b"scene-1\n"
    HEADER = struct.Struct("<8s16sIII28x")  # magic, stamp, height, width, labelled: 64 bytes

    def __init__(self, folder: str | Path, limit: float) -> None:
        self.folder, self.capacity = Path(folder), int(limit * GIGA)
        self.folder.mkdir(parents=True, exist_ok=True)
        with self._usage() as usage:
            usage[0] = self._scan()[1]

    def get(self, source: Source) -> Sample | None:
        """See SceneCache. A file that is not whole or not ours counts as absent."""
        try:
            with self._path(source).open("rb") as stream:
                data = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError):  # absent, or empty
            return None
        if len(data) < self.HEADER.size:
            return None
        magic, stamp, height, width, labelled = self.HEADER.unpack_from(data)
        size = self.HEADER.size + height * width * (4 if labelled else 3)
        if magic != self.MAGIC or stamp != source.stamp or len(data) != size:
            return None
        return _scene(np.frombuffer(data, np.uint8), self.HEADER.size, height, width, labelled)

    def put(self, source: Source, scene: Sample) -> bool:
        """See SceneCache."""
        path, size = self._path(source), self.HEADER.size + _bytes_of(scene)
        temporary = None
        try:
            with self._usage() as usage:
                if usage[0] + size - _size_of(path) > self.capacity:
                    return False
            temporary = self._write(source, scene)
            with self._usage() as usage:
                grown = size - _size_of(path)  # another process may have stored it meanwhile
                if usage[0] + grown > self.capacity:
                    return False
                os.replace(temporary, path)
                usage[0] += grown
            return True
        except OSError:
            return False
        finally:
            if temporary is not None:
                temporary.unlink(missing_ok=True)

    def usage(self) -> tuple[int, int]:
        """See SceneCache; everything in the folder is counted."""
        return self._scan()

    def _write(self, source: Source, scene: Sample) -> Path:
        """A file that holds the scene, on disk, under a name that no reader looks for."""
        height, width = scene.image.shape[:2]
        header = (self.MAGIC, source.stamp, height, width, scene.label is not None)
        handle, temporary = tempfile.mkstemp(dir=self.folder, suffix=".part")
        try:
            with os.fdopen(handle, "wb") as stream:
                stream.write(self.HEADER.pack(*header))
                for array in _arrays(scene):
                    stream.write(array.data)
                stream.flush()
                os.fsync(stream.fileno())
        except BaseException:
            os.unlink(temporary)
            raise
        return Path(temporary)

    def _path(self, source: Source) -> Path:
        name = hashlib.blake2b(source.identity.encode(), digest_size=16).hexdigest()
        return self.folder / f"{name}.scene"

    def _scan(self) -> tuple[int, int]:
        """(files, bytes) of the folder; what a killed writer left behind is removed."""
        files = size = 0
        with os.scandir(self.folder) as entries:
            for entry in entries:
                with contextlib.suppress(FileNotFoundError):
                    if entry.name.endswith(".scene"):
                        files, size = files + 1, size + entry.stat().st_size
                    elif entry.name.endswith(".part") and _age(entry) > ABANDONED:
                        os.unlink(entry.path)
        return files, size

    @contextlib.contextmanager
    def _usage(self) -> Iterator[np.ndarray]:
        """The size of all files, to read and change while no other process does."""
        with (self.folder / "usage").open("a+b") as stream:
            if fcntl is not None:
                fcntl.flock(stream, fcntl.LOCK_EX)
            stream.seek(0)
            value = np.zeros(1, np.int64)
            content = stream.read(8)
            if len(content) == 8:
                value[0] = int.from_bytes(content, "little")
            yield value
            stream.truncate(0)
            stream.write(max(0, int(value[0])).to_bytes(8, "little"))


def _size_of(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _age(entry: os.DirEntry) -> float:
    return time.time() - entry.stat().st_mtime


def _halves(stamp: bytes) -> list[int]:
    return list(struct.unpack("<qq", stamp))


def _arrays(scene: Sample) -> list[np.ndarray]:
    arrays = [scene.image] if scene.label is None else [scene.image, scene.label]
    return [np.ascontiguousarray(array) for array in arrays]


def _bytes_of(scene: Sample) -> int:
    return scene.image.size + (0 if scene.label is None else scene.label.size)


def _scene(data: np.ndarray, first: int, height: int, width: int, labelled: int) -> Sample:
    pixels = height * width
    image = data[first : first + 3 * pixels].reshape(height, width, 3)
    label = None
    if labelled:
        label = data[first + 3 * pixels : first + 4 * pixels].reshape(height, width)
        label.flags.writeable = False
    image.flags.writeable = False
    return Sample(image, label)
