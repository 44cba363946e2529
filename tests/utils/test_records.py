"""Records are written whole and say what they were measured on."""

import errno
import hashlib
import json
import math
import os
import pickle
import re
import shutil
from collections import namedtuple

import pytest
from processes import small_disk, small_files

from utils.records import (
    StorageError,
    atomic_file,
    atomic_path,
    atomic_write,
    environment,
    free_space,
    require_space,
    sha256,
    write_json,
)

SMALL = 4096  # bytes that a file may have in the tests


@pytest.fixture
def disk(tmp_path):
    """A file system of 64 KiB."""
    with small_disk(tmp_path, "64k") as disk:
        yield disk


def test_a_file_appears_only_when_whole(tmp_path):
    path = tmp_path / "deep" / "x.txt"
    with atomic_file(path) as stream:
        stream.write(b"half")
        assert not path.exists()
    assert path.read_bytes() == b"half"
    with pytest.raises(RuntimeError), atomic_file(path) as stream:
        stream.write(b"other")
        raise RuntimeError
    assert path.read_bytes() == b"half"
    assert [p.name for p in path.parent.iterdir()] == ["x.txt"]
    atomic_write(path, "text ä")
    assert path.read_text(encoding="utf-8") == "text ä"
    atomic_write(path, memoryview(b"view"))
    assert path.read_bytes() == b"view"


@pytest.mark.parametrize("name", ["x.mp4", "x", "é" * 120 + ".mp4", "n" * 251 + ".png"])
@pytest.mark.parametrize("mode", [None, 0o440])
def test_a_path_for_what_writes_by_name(tmp_path, name, mode):
    path = tmp_path / name
    if mode:
        path.write_bytes(b"before")
        path.chmod(mode)
    with pytest.raises(KeyError), atomic_path(path) as temporary:
        temporary.write_bytes(b"half")
        raise KeyError
    assert path.exists() == bool(mode)
    with atomic_path(path) as temporary:
        assert temporary.name.endswith(path.suffix) and temporary.parent == tmp_path
        assert temporary.read_bytes() == b""
        temporary.write_bytes(b"whole")
    assert path.read_bytes() == b"whole" and os.listdir(tmp_path) == [name]
    assert not mode or path.stat().st_mode & 0o777 == mode


@pytest.mark.parametrize("umask", [0o077, 0o002, 0o022, 0o000])
def test_permissions_are_what_the_umask_leaves_or_the_file_had(tmp_path, umask):
    def mode(path):
        return path.stat().st_mode & 0o7777

    before = os.umask(umask)
    try:
        atomic_write(tmp_path / "new", "1")
        for kept in (0o600, 0o664, 0o640, 0o755):
            old = tmp_path / f"{kept:o}"
            old.touch()
            old.chmod(kept)
            atomic_write(old, "2")
            assert mode(old) == kept and old.read_text() == "2"
    finally:
        os.umask(before)
    assert mode(tmp_path / "new") == 0o666 & ~umask


@pytest.mark.parametrize("earlier", [None, b"before"])
def test_a_file_that_cannot_grow_says_size_and_what_is_whole(tmp_path, earlier):
    path = tmp_path / "last.pt"
    if earlier:
        path.write_bytes(earlier)
    kept = "the file that was there is unchanged" if earlier else "nothing was written"
    with small_files(SMALL), pytest.raises(StorageError) as caught:
        atomic_write(path, bytes(200_000))
    words = rf"{re.escape(str(path))} cannot be written: File too large; it needs 0\.2 MB, "
    assert re.fullmatch(rf"{words}[\d.]+ MB are free there; {kept}", str(caught.value))
    assert caught.value.errno == errno.EFBIG
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(
        caught.value
    )  # from other processes
    assert [p.name for p in tmp_path.iterdir()] == (["last.pt"] if earlier else [])
    assert not earlier or path.read_bytes() == earlier


def test_a_full_disk(disk):
    path = disk / "runs" / "last.pt"
    atomic_write(path, bytes(30_000))
    with pytest.raises(StorageError, match=r"No space left on device; it needs 0\.1 MB, \d+ bytes"):
        atomic_write(path, bytes(100_000))
    assert path.read_bytes() == bytes(30_000) and len(list(path.parent.iterdir())) == 1
    words = r"No space left .* nothing was written"
    with (
        pytest.raises(StorageError, match=words),
        atomic_file(path.with_name("curve.png")) as stream,
    ):
        for _ in range(100):
            stream.write(bytes(1000))
    assert len(list(path.parent.iterdir())) == 1
    assert free_space(disk / "not" / "yet") < 65536


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
@pytest.mark.parametrize("where", ["open", "fsync", "replace"])
def test_whatever_fails_on_the_way_leaves_nothing(tmp_path, monkeypatch, code, where):
    def fail(*_arguments):
        raise OSError(code, os.strerror(code))

    atomic_write(tmp_path / "x", "before")
    monkeypatch.setattr(f"utils.records.os.{where}", fail)
    with pytest.raises(StorageError, match=f"{tmp_path}/x cannot be written: {os.strerror(code)};"):
        atomic_write(tmp_path / "x", "after")
    monkeypatch.undo()
    assert [p.name for p in tmp_path.iterdir()] == ["x"]
    assert (tmp_path / "x").read_text() == "before"


def test_an_error_of_the_content_stays_what_it_is(tmp_path):
    with pytest.raises(FileNotFoundError, match="elsewhere"), atomic_file(tmp_path / "x"):
        (tmp_path / "elsewhere").read_bytes()
    assert not any(tmp_path.iterdir())


def test_room_is_asked_for_before_work_begins(tmp_path, monkeypatch):
    disk = namedtuple("disk", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: disk(0, 0, 5_000_000))
    require_space(tmp_path / "run", 5_000_000, "checkpoints", "OUTPUT_DIR")
    words = "OUTPUT_DIR .*run has no room for checkpoints: about 6.0 MB are needed, 5.0 MB are free"
    with pytest.raises(ValueError, match=words):
        require_space(tmp_path / "run", 6_000_000, "checkpoints", "OUTPUT_DIR")


def test_json_has_no_values_that_json_does_not_know(tmp_path):
    write_json(tmp_path / "x.json", {"a": [1, None]})
    assert json.loads((tmp_path / "x.json").read_text()) == {"a": [1, None]}
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(tmp_path / "x.json", {"a": math.nan})
    assert json.loads((tmp_path / "x.json").read_text()) == {"a": [1, None]}


def test_digest_of_a_file_longer_than_a_block(tmp_path):
    content = bytes(range(256)) * 5000
    (tmp_path / "x").write_bytes(content)
    assert sha256(tmp_path / "x") == hashlib.sha256(content).hexdigest()


def test_environment_names_hardware_and_versions():
    facts = environment("cpu")
    assert facts["device"] and facts["torch"] and facts["python"] and facts["cpu_threads"] >= 1
    json.dumps(facts)
    assert environment("mps")["device"].endswith("GPU (MPS)")
