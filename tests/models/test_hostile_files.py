"""Files made to do harm: each is refused with one sentence, and nothing in it runs."""

import argparse
import contextlib
import importlib
import io
import os
import pickle
import pickletools
import random
import re
import resource
import signal
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoint_files import entry, number, pdparams, tensor, text, torch_legacy, torch_zip
from hostile_files import FILES, GOOD, RAW, TENSORS, zipped
from hostile_pickles import ARRAY, BROKEN, CALLS, F4, PICKLES, RUNS, STACKED, with_call
from safetensors.torch import save as safetensors_bytes

from models.weights import read_checkpoint

PEAK_BYTES = 400 << 20


@pytest.fixture(scope="module", autouse=True)
def warm(tmp_path_factory):
    """Import what the readers need before anything is watched."""
    path = tmp_path_factory.mktemp("warm") / "file"
    weights = {"w": torch.ones(1)}
    for content in (torch_zip(GOOD, RAW), safetensors_bytes(weights), pdparams(weights, 0)):
        path.write_bytes(content)
        assert list(read_checkpoint(path).tensors) == ["w"]
    sys.addaudithook(_audit)


_seen: list[str] | None = None
_FORBIDDEN = ("import", "exec", "compile", "pickle.", "os.", "subprocess.", "socket.", "ctypes.",
    "shutil.", "tempfile.", "urllib.", "marshal.", "code.", "builtins.input", "webbrowser.",
)  # fmt: skip


def _audit(event: str, arguments: tuple) -> None:
    if _seen is None:
        return
    if event == "open" and arguments[1] in ("r", "rb"):
        _seen.append(f"open {arguments[0]}")
    elif event == "open" or event.startswith(_FORBIDDEN):
        _seen.append(f"{event} {arguments}")


def peak() -> int:
    """Largest resident size of this process in bytes since `forget_peak`."""
    try:
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) << 10
    except (OSError, IndexError):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def forget_peak() -> None:
    with contextlib.suppress(OSError):  # then growth below the peak so far is not seen
        Path("/proc/self/clear_refs").write_text("5")


def too_long(*_: object) -> None:
    pytest.fail("reading did not end")


class watched:
    """Nothing but the one file is opened, nothing imported, memory stays small, and it ends."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> None:
        global _seen
        forget_peak()
        self.before, self.modules = peak(), set(sys.modules)
        signal.signal(signal.SIGALRM, too_long)
        signal.alarm(300)
        _seen = []

    def __exit__(self, *problem: object) -> None:
        global _seen
        seen, _seen = _seen, None
        signal.alarm(0)
        if problem[0] is None:
            assert set(seen) <= {f"open {self.path}"}
            assert set(sys.modules) == self.modules
            assert peak() - self.before < PEAK_BYTES


def refused(path: Path, match: str) -> None:
    """Reading gives one printable sentence that names the file, and does nothing else."""
    with watched(path), pytest.raises((ValueError, FileNotFoundError)) as caught:
        read_checkpoint(path)
    message = str(caught.value)
    assert message.startswith(str(path)) and message.isprintable() and len(message) < 600
    assert re.search(match, message), message


@pytest.fixture
def mark(tmp_path, monkeypatch):
    """A file that must not appear, and a module on the path that makes it when imported."""
    made = tmp_path / "executed"
    folder = tmp_path / "modules"
    (folder / "side_effect").mkdir(parents=True)
    for name in ("__init__", "sub"):
        body = f"open({str(made)!r}, 'w')\ndef run(*_): open({str(made)!r}, 'w')\n"
        (folder / "side_effect" / f"{name}.py").write_text(body)
    monkeypatch.syspath_prepend(folder)
    yield made
    assert not made.exists() and "side_effect" not in sys.modules


@pytest.mark.parametrize("name", CALLS)
def test_calls(name, mark, tmp_path):
    stream = with_call(name, CALLS[name], mark)
    python3 = {"__builtin__.eval": "builtins.eval", "commands.Popen": "subprocess.Popen"}
    called = re.escape(python3.get(name, name))
    for kind, content in (
        ("zip", torch_zip(entry(stream), RAW)),
        ("legacy", torch_legacy(entry(stream))),
        ("protocol 2", entry(stream)),
        ("protocol 5", entry(stream, protocol=5)),
        (
            "beside weights",
            torch_zip(entry(stream)[:-1] + text("v") + tensor((4,), (1,)) + b"s.", RAW),
        ),
        ("in a wrapper", entry(entry(stream)[2:-1], "state_dict")),
    ):
        path = tmp_path / f"{kind}.pth"
        path.write_bytes(content)
        refused(path, f"is a pickle that calls {called}, which is {RUNS}")


def test_real_pickles_of_calls(mark, tmp_path):
    """Written by Python itself and by torch.save."""
    attacks = [
        Evil(os.system, f"touch {mark}"),
        Evil(eval, f"open({str(mark)!r}, 'w')"),
        Evil(exec, f"open({str(mark)!r}, 'w')"),
        Evil(getattr, Path(mark), "touch"),
        Evil(subprocess.Popen, ["touch", str(mark)]),
        Evil(importlib.import_module, "side_effect"),
        Evil(pickle.loads, b"cos\nsystem\n(S'touch x'\ntR."),
        Evil(np.load, str(mark)),
        Evil(torch.load, str(mark)),
    ]
    state = {"w": torch.ones(2)}
    for attack in attacks:
        for new in (True, False):
            path = tmp_path / "weights.pt"
            content = {"state_dict": state, "extra": attack}
            torch.save(content, path, _use_new_zipfile_serialization=new)
            refused(path, RUNS)
        for protocol in range(6):
            path = tmp_path / "weights.pdparams"
            path.write_bytes(pickle.dumps({"w": np.ones(2), "a": attack}, protocol))
            refused(path, RUNS)


class Evil:
    """Pickles as a call."""

    def __init__(self, *call: object) -> None:
        self.call = call

    def __reduce__(self):
        function, *arguments = self.call
        return function, tuple(arguments)


@pytest.mark.medium
@pytest.mark.parametrize("name", PICKLES)
def test_pickles(name, mark, tmp_path):
    content, sentence = PICKLES[name]
    path = tmp_path / "weights.pdparams"
    path.write_bytes(content)
    refused(path, sentence)
    if len(content) < 10_000 and content.startswith(b"\x80"):
        for wrapped in (torch_zip(content, RAW), torch_legacy(content)):
            path.write_bytes(wrapped)
            refused(path, f"{sentence}|{BROKEN}")


@pytest.mark.parametrize("name", TENSORS)
def test_tensors(name, mark, tmp_path):
    value, sentence = TENSORS[name]
    path = tmp_path / "weights.pt"
    path.write_bytes(torch_zip(entry(value), RAW))
    refused(path, sentence)
    listed = b"\x80\x02]" + text("0") + b"a." + struct.pack("<q", 4) + RAW["0"]
    path.write_bytes(torch_legacy(entry(value), listed))
    refused(path, sentence)


@pytest.mark.parametrize("name", FILES)
def test_files(name, mark, tmp_path):
    make, sentence = FILES[name]
    path = tmp_path / "weights.pt"
    path.write_bytes(make())
    refused(path, sentence)


def test_duplicate_names(mark, tmp_path):
    path = tmp_path / "weights.pt"
    with pytest.warns(UserWarning, match="Duplicate name"):
        content = zipped([("archive/data.pkl", GOOD), ("archive/data.pkl", entry(STACKED))])
    path.write_bytes(content)
    refused(path, "overlap")


def test_things_that_are_no_files(mark, tmp_path):
    pipe, loop = tmp_path / "pipe.pt", tmp_path / "loop.pt"
    os.mkfifo(pipe)
    loop.symlink_to(loop)
    refused(pipe, "is a device or a pipe; expected a torch")
    refused(Path("/dev/zero"), "is a device or a pipe; expected a torch")
    refused(loop, "does not exist; expected a torch")
    refused(tmp_path, "is a directory")
    sparse = tmp_path / "large.pt"
    with sparse.open("wb") as stream:
        stream.truncate((8 << 30) + 1)
    refused(sparse, "has 8589934593 bytes, more than the 8589934592 that are read")


def test_arrays_that_share_their_bytes_share_memory(tmp_path):
    """20000 names of one array of a megabyte."""
    state = b"(K\x01" + number(1 << 18) + b"\x85" + F4 + b"\x89B"
    array = ARRAY + state + struct.pack("<I", 1 << 20) + bytes(1 << 20) + b"q\x05tb"
    body = b"(" + text("a") + array
    for i in range(500):
        body += text(f"w{i}") + ARRAY + state[:-1] + b"h\x05tb"
    path = tmp_path / "weights.pdparams"
    path.write_bytes(b"\x80\x03}" + body + b"u.")
    with watched(path):
        assert len(read_checkpoint(path).tensors) == 501
    stretched = entry(tensor((1 << 12, 1 << 12), (0, 0)))
    path.write_bytes(torch_zip(stretched, RAW))
    with watched(path):
        assert read_checkpoint(path).tensors["w"].shape == (1 << 12, 1 << 12)


DOUBLED = b"]" + b"".join(b"q%c0](h%ch%ce" % (i, i, i) for i in range(200))
DOUBLED_PAIRS = b")" + b"".join(b"q%c0h%ch%c\x86" % (i, i, i) for i in range(200))
SELF = b"]q\x07h\x07a"
ENTRIES = {  # streams that push an entry beside the weights, and what its reading must say
    "a list that holds itself": (SELF, ""),
    "a tuple of a list that holds it": (b"]q\x07h\x07\x85q\x08ah\x08\x85a", ""),
    "doubled two hundred times": (DOUBLED, ""),
    "pairs of pairs": (b"]" + DOUBLED_PAIRS + b"a", ""),
    "a list in a list": (b"]" * 100_000 + b"a" * 99_999, BROKEN),
    "an unknown object": (b"](cside_effect\nRun\n)\x81e", ""),
}


@pytest.mark.parametrize("name", ENTRIES)
def test_entries_asked_for(name, mark, tmp_path):
    value, sentence = ENTRIES[name]
    stream = entry(entry(tensor((4,), (1,)))[2:-1], "model")[:-1] + text("extra") + value + b"s."
    path = tmp_path / "weights.pt"
    path.write_bytes(torch_zip(stream, RAW))
    with watched(path):
        assert read_checkpoint(path).facts == {}
    with watched(path):
        if not sentence:
            assert isinstance(read_checkpoint(path, {"extra": list}).facts["extra"], list)
        else:
            with pytest.raises(ValueError, match=sentence):
                read_checkpoint(path, {"extra": list})


def seeds() -> list[bytes]:
    """Small whole files of every kind."""
    state = {"a.weight": torch.randn(2, 3), "a.bias": torch.zeros(3), "n": torch.tensor(1)}
    content = {"state_dict": state, "epoch": 3, "lr": [0.1, None], "who": argparse.Namespace(a=1)}
    files = []
    for protocol in (2, 4):
        for new in (True, False):
            stream = io.BytesIO()
            how = {"_use_new_zipfile_serialization": new, "pickle_protocol": protocol}
            torch.save(content, stream, **how)
            files.append(stream.getvalue())
    files += [pdparams(state, protocol) for protocol in (0, 2, 4, 5)]
    return [*files, safetensors_bytes(state)]


def mutated(data: bytes, others: list[bytes], dice: random.Random) -> bytes:
    """`data` after a few random changes."""
    out = bytearray(data)
    for _ in range(dice.choice((1, 1, 2, 4, 16))):
        at = dice.randrange(len(out) or 1)
        kind = dice.randrange(7)
        if kind == 0 and out:
            out[at] ^= 1 << dice.randrange(8)
        elif kind == 1 and out:
            out[at] = dice.choice(OPCODES)
        elif kind == 2:
            del out[at : at + dice.choice((1, 2, 8, 64))]
        elif kind == 3:
            out[at:at] = out[at : at + dice.choice((1, 4, 32))]
        elif kind == 4:
            size = dice.choice((1, 2, 4, 8))
            value = dice.choice((0, -1, 1 << (8 * size - 1), 255))
            out[at : at + size] = (value % (1 << 8 * size)).to_bytes(size, "little")
        elif kind == 5:
            other = dice.choice(others)
            start = dice.randrange(len(other))
            out[at : at + 8] = other[start : start + dice.choice((4, 16, 64))]
        else:
            del out[at:]
    return bytes(out)


OPCODES = [ord(operation.code) for operation in pickletools.opcodes]


@pytest.mark.medium
@pytest.mark.parametrize("seed", range(4))
def test_mutations_load_or_are_refused(seed, mark, tmp_path):
    dice, files = random.Random(seed), seeds()
    path = tmp_path / "weights.pt"
    loaded = 0
    for i in range(1000):
        data = files[i % len(files)]
        if data.startswith(b"PK") and i % 3:  # the pickle inside: the outer sums would catch it
            archive = zipfile.ZipFile(io.BytesIO(data))
            (main,) = (name for name in archive.namelist() if name.endswith("data.pkl"))
            storages = {
                n.split("/")[-1]: archive.read(n) for n in archive.namelist() if "/data/" in n
            }
            content = torch_zip(mutated(archive.read(main), files, dice), storages)
        else:
            content = mutated(data, files, dice)
        path.write_bytes(content or b"x")
        try:
            with watched(path):
                tensors = read_checkpoint(path).tensors
        except ValueError as error:
            assert str(error).startswith(str(path)) and str(error).isprintable()
            continue
        loaded += 1
        assert all(isinstance(value, torch.Tensor) for value in tensors.values())
        assert sum(value.numel() for value in tensors.values()) < 1 << 26
    assert 20 < loaded < 980
