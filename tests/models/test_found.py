"""Trained networks among the files of some folders."""

import os
from pathlib import Path

import pytest
import torch

from models import build_model
from models.weights import describe, find_trained, stored
from utils.checkpoint import save_checkpoint

OPTIONS = {"base_channels": 4, "context_channels": 6, "head_channels": 8}
FACTS = {
    "architecture": "pidnet_s",
    "options": OPTIONS,
    "dataset": "fruit",
    "class_names": ["apple", "pear", "plum"],
    "palette": [[255, 0, 0], [0, 255, 0], [0, 0, 255]],
    "score": {"miou": 0.614, "epoch": 7, "list": "val.lst"},
}


@pytest.fixture
def write(tmp_path):
    model = build_model("pidnet_s", 3, **OPTIONS)

    def write_file(name, **changes):
        content = FACTS | changes
        content = {key: value for key, value in content.items() if value is not None}
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        save_checkpoint(tmp_path / name, {**content, "model": model.state_dict()})
        return tmp_path / name

    return write_file


def test_a_file_is_told_by_what_it_says(write, tmp_path):
    found = describe(write("a/best.pt"))
    assert found.title(tmp_path) == "pidnet_s, fruit, 61.4 % mIoU (a/best.pt)"
    assert found.class_names == ("apple", "pear", "plum")
    plain = describe(write("b/best.pt", dataset=None, score={"miou": "high"}))
    assert plain.title("/elsewhere") == f"pidnet_s, 3 classes ({tmp_path}/b/best.pt)"


def test_the_weights_stay_unread(write, monkeypatch):
    path = write("best.pt")
    monkeypatch.setattr(stored.StoredTensor, "tensor", lambda *_: pytest.fail("weights were read"))
    assert describe(path).architecture == "pidnet_s"


def test_folders_are_searched_and_the_rest_is_told(write, tmp_path):
    write("run/best.pt"), write("run/last.pt"), write("run/previous.pt")
    write("other/last.pt")
    write("run/.best.pt.1234.pt")  # being written
    write("bad/palette.pt", palette=[[1, 2, 3]])
    write("bad/network.pt", architecture="pidnet_z")
    write("bad/names.pt", class_names=None)
    torch.save(build_model("pidnet_s", 3, **OPTIONS).state_dict(), tmp_path / "bad/bare.pth")
    (tmp_path / "bad/damaged.pt").write_bytes((tmp_path / "run/best.pt").read_bytes()[:2000])
    (tmp_path / "bad/empty.pt").write_bytes(b"")
    (tmp_path / "bad/folder.pt").mkdir()
    os.symlink("nowhere", tmp_path / "bad/link.pt")
    (tmp_path / "notes.txt").write_text("no weights")
    found, left_out = find_trained([tmp_path, tmp_path / "not there"])
    assert [each.path.relative_to(tmp_path).as_posix() for each in found] == [
        "other/last.pt", "run/best.pt",
    ]  # fmt: skip
    told = " ".join(left_out)
    names = ("palette", "network", "names", "bare.pth", "damaged", "empty", "folder", "link")
    assert len(left_out) == len(names) and all(name in told for name in names)
    assert "run" not in told.replace(str(tmp_path), "") and "which network" in told


def test_files_that_change_are_read_again(write, tmp_path):
    path = write("best.pt")
    assert find_trained([tmp_path])[0][0].score["miou"] == 0.614
    write("best.pt", score={"miou": 0.7, "epoch": 8, "list": "val.lst"})
    os.utime(path, ns=(1, 2))
    assert find_trained([tmp_path])[0][0].score["miou"] == 0.7
    Path(path).unlink()
    assert find_trained([tmp_path]) == ([], [])
