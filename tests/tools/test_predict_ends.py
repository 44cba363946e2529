"""Prediction that cannot begin, or that ends early."""

import importlib
import signal

import cv2
import numpy as np
import pytest
import torch
from prediction import SCRIPT, files, png, table
from processes import limited, small_disk, wait_for
from videos import read_video, scenes, write_video

from datasets import EvalTransform, read_image
from models import build_model, fuse
from utils.predictor import Predictor


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nothing", "--out", "out"], ["nothing does not exist"]),
        (["empty", "--out", "out"], ["empty: no picture and no video there"]),
        (["texts", "--out", "out"], ["texts: no picture and", "other files: texts/a.txt"]),
        (["frames/*.gif", "--out", "out"], ["no file or folder fits frames/*.gif"]),
        (["frames"], ["--out FOLDER is needed"]),
        (["frames", "--json", "--view"], ["--out FOLDER is needed"]),
        (["frames", "--out", "texts/a.txt"], ["--out leads to texts/a.txt", "is not a folder"]),
        (["frames", "--out", "texts/a.txt/x"], ["--out leads to", "a.txt is not a folder"]),
        (["frames", "--out", "out", "--opacity", "1.5"], ["--opacity is 1.5; accepted: 0..1"]),
        (["frames", "--out", "out", "--frames", "-1"], ["--frames is -1"]),
        (["frames", "--out", "out", "--short-side", "-5"], ["--short-side is -5"]),
        (["frames", "--out", "out", "--slide", "0", "64"], ["slide is (0, 64)"]),
        (["frames", "--out", "out", "--device", "cuda:7"], ["device 'cuda:7' is not on this"]),
        (["frames", "--out", "out", "--device", "tpu"], ["accepted: auto, cpu"]),
        (["frames", "--out", "out", "--precision", "fp16"], ["precision fp16 needs CUDA"]),
        (["frames", "--out", "out", "--arch", "ddrnet_39"], ["holds pidnet_s, not ddrnet_39"]),
        (["frames", "--out", "out", "--classes", "camvid"], ["was trained on other classes"]),
        (["frames", "--out", "out", "--classes", "camvit"], ["did you mean camvid?"]),
        (["frames", "--view"], ["opencv-python-headless"]),
    ],
    ids=str,
)
def test_what_cannot_be_done_is_refused(refuses, checkpoint, frames, arguments, words, monkeypatch):
    monkeypatch.setattr(cv2, "getBuildInformation", lambda: "  GUI:  NONE\n")
    base = frames.parent
    (base / "empty").mkdir()
    (base / "texts").mkdir()
    (base / "texts/a.txt").write_text("text")
    before = files(base)
    places = [
        str(base / word) if word.split("/")[0] in ("frames", "empty", "texts", "out") else word
        for word in arguments
    ]
    told = refuses([], SCRIPT, checkpoint, *places).replace(f"{base}/", "")
    assert all(word in told for word in words), told
    assert files(base) == before


@pytest.mark.parametrize(
    ("name", "arguments", "words"),
    [
        ("absent.pt", [], ["absent.pt does not exist"]),
        ("cut.pt", [], ["cut.pt"]),
        ("text.pt", [], ["is not a checkpoint"]),
        ("bare.pt", [], ["does not say of which network"]),
        ("bare.pt", ["--arch", "pidnet_s"], ["does not say what its classes are"]),
        ("bare.pt", ["--arch", "pidnet_s", "--classes", "ade20k"], ["has 11 classes, not the 150"]),
        ("bare.pt", ["--arch", "rdrnet_s", "--classes", "camvid"], ["bare.pt"]),
    ],
)
def test_weights_that_do_not_fit_are_refused(
    refuses, checkpoint, frames, tmp_path, name, arguments, words
):
    (tmp_path / "cut.pt").write_bytes(checkpoint.read_bytes()[:5000])
    (tmp_path / "text.pt").write_text("no weights at all\n" * 9)
    torch.save(build_model("pidnet_s", 11).state_dict(), tmp_path / "bare.pt")
    refuses(words, SCRIPT, tmp_path / name, frames, "--out", tmp_path / "out", *arguments)
    assert not (tmp_path / "out").exists()


def test_published_weights_with_their_names(call, frames, tmp_path):
    torch.manual_seed(1)
    model = build_model("ddrnet_23_slim", 3)
    torch.save(model.state_dict(), tmp_path / "bare.pt")
    (tmp_path / "fruit.yaml").write_text("class_names: [apple, pear, plum]\n")
    named = ("--arch", "ddrnet_23_slim", "--classes", tmp_path / "fruit.yaml")
    out = tmp_path / "out"
    call(SCRIPT, tmp_path / "bare.pt", frames / "0.png", "--out", out, "--save", "index", *named)
    expected = Predictor(
        fuse(model.eval()), EvalTransform(), ["a", "b", "c"], [(0, 0, 0)] * 3, device="cpu"
    )
    assert np.array_equal(png(out / "index/0.png"), expected(read_image(frames / "0.png")))
    assert list(table(out)[0]) == ["file", "frame", "apple", "pear", "plum"]


@pytest.mark.alone
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_after_the_frame_and_what_is_written_is_whole(
    start, checkpoint, frames, tmp_path, number, status
):
    write_video(tmp_path / "long.mp4", scenes(40, 96, 128) * 100)
    out = tmp_path / "out"
    process = start(SCRIPT, checkpoint, frames, tmp_path / "long.mp4", "--out", out, "--json")
    wait_for(lambda: any(p.stat().st_size > 10_000 for p in out.glob("overlay/.long*")), process)
    process.send_signal(number)
    told, err = process.communicate(timeout=600)
    assert process.returncode == status, err
    assert "stopping after this frame and saving" in err and "Traceback" not in err
    assert files(out) == [
        *(f"overlay/{number}.jpg" for number in range(3)), "overlay/long.mp4",
        "shares.csv", "shares.json",
    ]  # fmt: skip
    count = len(read_video(out / "overlay/long.mp4")[0])
    assert 0 < count < 4000 and len(table(out)) == 3 + count
    assert f"{3 + count} frames in" in told


def test_a_file_that_cannot_grow_ends_it_and_leaves_no_video(run, checkpoint, frames, tmp_path):
    """As on a full disk: one sentence, and nothing that is half written."""
    noise = np.random.default_rng(0).integers(0, 256, (40, 240, 320, 3), dtype=np.uint8)
    write_video(tmp_path / "noise.mp4", noise)
    out = tmp_path / "out"
    words = (SCRIPT, checkpoint, frames, tmp_path / "noise.mp4", "--out", out)
    done = run(*words, status=2, preexec_fn=limited(100_000))
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1 and "noise.mp4 cannot be written: " in lines[0], done.stderr
    assert "nothing was written" in lines[0]
    assert files(out) == [f"overlay/{number}.jpg" for number in range(3)]


@pytest.mark.slow
def test_a_full_disk_in_the_middle_of_a_video(run, checkpoint, tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (20, 240, 320, 3), dtype=np.uint8)
    write_video(tmp_path / "noise.mp4", [*noise] * 30)
    with small_disk(tmp_path, "1m") as disk:
        done = run(SCRIPT, checkpoint, tmp_path / "noise.mp4", "--out", disk / "out", status=2)
        lines = done.stderr.strip().splitlines()
        assert len(lines) == 1 and "No space left on device" in lines[0], done.stderr
        assert files(disk) == []


def test_a_picture_that_memory_does_not_hold_is_named(call, checkpoint, frames, monkeypatch):
    predict = Predictor.run

    def run(predictor, fed):
        if fed.size == (131, 64):
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried 9 bytes")
        return predict(predictor, fed)

    monkeypatch.setattr(Predictor, "run", run)
    out = frames.parent / "out"
    told = call(SCRIPT, checkpoint, frames, "--out", out, status=1).stdout
    assert "2.png: this machine has no memory left" in told and "--long-side or --slide" in told
    assert files(out) == ["overlay/0.jpg", "overlay/1.jpg", "shares.csv"]
    write_video(frames.parent / "clip.mp4", scenes(3, 131, 64))
    words = (SCRIPT, checkpoint, frames.parent / "clip.mp4", "--out", out, "--frames", 2)
    monkeypatch.setattr(Predictor, "run", lambda *_: run(_[0], _[1]._replace(size=(131, 64))))
    assert "clip.mp4: this machine has no memory" in call(*words, status=2).stderr
    assert files(out) == ["overlay/0.jpg", "overlay/1.jpg", "shares.csv"]


def test_a_fault_while_drawing_is_told_and_leaves_no_table(call, checkpoint, frames, monkeypatch):
    predictions = importlib.import_module("predictions")

    def fail(*_arguments, **_more):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(predictions, "write_photograph", fail)
    out = frames.parent / "out"
    assert "Input/output error" in call(SCRIPT, checkpoint, frames, "--out", out, status=2).stderr
    assert files(out) == []
