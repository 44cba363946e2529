"""Checkpoints are whole or absent, hold data only, and say what they were trained on."""

import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from processes import small_files

from models.weights import read_checkpoint
from utils.checkpoint import (
    FORMAT,
    check_belongs,
    keep_earlier_run,
    read_resumable,
    require_room,
    save_checkpoint,
)
from utils.distributed import World
from utils.records import StorageError
from utils.run_state import random_state, restore_optimizer, restore_random_state

CPU = World(0, 1, torch.device("cpu"))
CONTENT = {
    "architecture": "pidnet_s",
    "options": {"scales": (3, 5)},
    "dataset": "camvid",
    "class_names": ["road", "sky"],
    "model": {"w": torch.arange(4.0)},
    "config": "SEED: 1",
    "progress": {"epoch": 3, "sums": {"loss": 0.5}},
    "steps_per_epoch": 5,
    "batch": 2,
    "optimizer": {},
    "scaler": {},
    "random": [],
}


def resume(path, architecture="pidnet_s", names=("road", "sky")):
    return read_resumable(path, read_checkpoint, architecture, names)


def equal(a, b) -> bool:
    """Whether two values are the same, tensors within them too."""
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return type(a) is type(b) and len(a) == len(b) and all(map(equal, a, b))
    return type(a) is type(b) and a == b


def test_round_trip(tmp_path):
    path = tmp_path / "last.pt"
    save_checkpoint(path, CONTENT)
    content = resume(path)
    assert content.pop("format") == FORMAT and equal(content, CONTENT)
    assert [p.name for p in tmp_path.iterdir()] == ["last.pt"]


def test_a_checkpoint_that_finds_no_room_leaves_the_earlier_one_and_nothing_else(tmp_path):
    path = tmp_path / "last.pt"
    save_checkpoint(path, CONTENT)
    before, words = path.read_bytes(), r"last.pt cannot .*needs 0.4 MB, .* is unchanged"
    with small_files(10_000), pytest.raises(StorageError, match=words):
        save_checkpoint(path, CONTENT | {"model": {"w": torch.zeros(100_000)}})
    assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    ("moments", "make"), [(2, torch.optim.AdamW), (1, partial(torch.optim.SGD, momentum=0.9))]
)
def test_the_room_asked_for_is_what_a_run_takes(tmp_path, monkeypatch, moments, make):
    model = torch.nn.Sequential(torch.nn.Conv2d(8, 512, 5), torch.nn.BatchNorm2d(512))
    optimizer = make(model.parameters(), lr=0.1)
    model(torch.randn(1, 8, 9, 9)).sum().backward()
    optimizer.step()
    save_checkpoint(tmp_path / "last.pt", {"m": model.state_dict(), "o": optimizer.state_dict()})
    save_checkpoint(tmp_path / "best.pt", {"m": model.state_dict()})
    last, best = ((tmp_path / name).stat().st_size for name in ("last.pt", "best.pt"))
    asked = []
    monkeypatch.setattr("utils.checkpoint.require_space", lambda _, size, *__: asked.append(size))
    require_room(tmp_path, model, moments=moments)
    assert 0.9 * (3 * last + best) < asked[0] < 3 * last + best  # headers of the files are small


@pytest.mark.skipif(sys.platform == "win32", reason="kills a process with SIGKILL")
def test_a_kill_while_saving_leaves_the_earlier_checkpoint(tmp_path):
    path = tmp_path / "last.pt"
    save_checkpoint(path, CONTENT)
    before = path.read_bytes()
    code = (
        "import os, sys, signal, torch; sys.path.insert(0, os.getcwd())\n"
        "import utils.records as records\n"
        "from utils.checkpoint import save_checkpoint\n"
        "records.os.fsync = lambda _: os.kill(os.getpid(), signal.SIGKILL)\n"
        f"save_checkpoint({str(path)!r}, {{'model': torch.zeros(100000)}})\n"
    )
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, check=False)
    assert done.returncode == -signal.SIGKILL
    assert path.read_bytes() == before


def test_a_failed_write_leaves_nothing_behind(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        save_checkpoint(tmp_path / "last.pt", CONTENT)
    assert list(tmp_path.iterdir()) == []


def test_foreign_and_damaged_files_are_not_ours(tmp_path):
    path = tmp_path / "x.pt"
    sentence = r"x\.pt cannot be resumed from.*damaged"
    for content in ({"state_dict": CONTENT["model"]}, {**CONTENT, "format": "another"}):
        torch.save(content, path)
        with pytest.raises(ValueError, match=sentence):
            resume(path)
    for key, value in {"progress": 3, "batch": "2", "class_names": None, "random": ()}.items():
        save_checkpoint(path, {**CONTENT, key: value})
        with pytest.raises(ValueError, match=sentence):
            resume(path)
    save_checkpoint(path, CONTENT)
    for content in (b"", path.read_bytes()[:300], b"\x80\x02}q\x00."):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=sentence):
            resume(path)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_the_memory_of_a_run_comes_back_to_the_bit(tmp_path, name):
    weight = torch.nn.Parameter(torch.randn(3, 2).t())
    make = {"sgd": torch.optim.SGD, "adamw": torch.optim.AdamW}[name]
    optimizer = make([weight], lr=0.1, **({"momentum": 0.9} if name == "sgd" else {}))
    weight.grad = torch.randn(2, 3)
    optimizer.step()
    state = optimizer.state_dict()
    assert state["state"][0]
    content = {
        **CONTENT, "optimizer": state, "random": random_state(CPU),
        "scaler": {"scale": 65536.0, "_growth_tracker": 7}, "progress": {"best": (float("-inf"),)},
    }  # fmt: skip
    save_checkpoint(tmp_path / "last.pt", content)
    found = resume(tmp_path / "last.pt")
    assert equal({key: found[key] for key in content}, content)
    optimizer.load_state_dict(found["optimizer"])
    assert restore_random_state(found["random"], CPU)


def test_what_does_not_belong_to_the_run_is_refused(tmp_path):
    path = tmp_path / "last.pt"
    save_checkpoint(path, CONTENT)
    with pytest.raises(ValueError, match="is a run of pidnet_s, not of pidnet_m"):
        resume(path, "pidnet_m")
    with pytest.raises(ValueError, match=r"camvid \(2 classes\), not on the 3 classes"):
        resume(path, names=["a", "b", "c"])
    save_checkpoint(path, {k: v for k, v in CONTENT.items() if k != "optimizer"})
    with pytest.raises(ValueError, match=r"weights only.*last\.pt"):
        resume(path)


def test_classes_and_options_must_be_the_same():
    own = {"dataset": "camvid", "class_names": ("road", "sky"), "options": {"scales": (3, 5)}}
    check_belongs(CONTENT, "best.pt", **own)
    with pytest.raises(ValueError, match=r"best\.pt was trained on camvid \(2 classes\).*RESET"):
        check_belongs(CONTENT, "best.pt", **own | {"class_names": ("sky", "road")})
    check_belongs(
        CONTENT, "best.pt", **own | {"dataset": "synthetic"}
    )  # whose classes may be these
    with pytest.raises(ValueError, match=r"MODEL\.OPTIONS \{'scales': \(3, 5\)\}; they are \{\}"):
        check_belongs(CONTENT, "best.pt", **own | {"options": {}})


def test_random_state_comes_back_only_to_as_many_processes():
    states = random_state(CPU)
    first = torch.rand(3)
    assert restore_random_state(states, CPU)
    assert torch.equal(torch.rand(3), first)
    assert not restore_random_state(states, World(0, 2, CPU.device))


def test_the_optimiser_remembers_but_obeys_new_settings():
    weight = torch.nn.Parameter(torch.ones(2))
    old = torch.optim.AdamW([weight], lr=0.1, weight_decay=0.1)
    weight.grad = torch.ones(2)
    old.step()
    new = torch.optim.AdamW([weight], lr=0.2, weight_decay=0.3)
    restore_optimizer(new, old.state_dict())
    assert new.param_groups[0]["weight_decay"] == 0.3
    assert torch.equal(new.state[weight]["exp_avg"], old.state[weight]["exp_avg"])


def test_an_optimiser_of_a_device_without_fused_kernels_goes_on_with_them():
    """A Mac's GPU counts steps beside the device; fused kernels want them on it, as float32."""
    weight = torch.nn.Parameter(torch.ones(2))
    plain = torch.optim.AdamW([weight], lr=0.1, fused=False)
    weight.grad = torch.ones(2)
    plain.step()
    state = plain.state_dict()
    state["state"][0]["step"] = state["state"][0]["step"].double()  # stays where nothing moves it
    fused = torch.optim.AdamW([weight], lr=0.1, fused=True)
    restore_optimizer(fused, state)
    assert fused.state[weight]["step"].dtype == torch.float32
    assert fused.param_groups[0]["fused"] is True


def test_an_earlier_run_is_moved_aside(tmp_path):
    folder = tmp_path / "run"
    assert keep_earlier_run(folder) is None
    for _ in range(2):
        folder.mkdir()
        (folder / "best.pt").touch()
        assert not folder.exists() or keep_earlier_run(folder)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["run.1", "run.2"]
