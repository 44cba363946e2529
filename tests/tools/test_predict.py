"""Prediction: what is written of pictures and videos, where, and what is shown."""

import json

import numpy as np
import pytest
from pictures import saved
from prediction import DRAWN, FACTS, NAMES, PALETTE, SCRIPT, files, network, png, table
from videos import read_video, scenes, write_video

from datasets import EvalTransform, read_image
from models import fuse
from utils.legend import with_legend
from utils.predictor import Predictor


def test_every_kind_of_picture(call, checkpoint, frames, predictor, tmp_path):
    out = tmp_path / "out"
    kinds = ("overlay", "color", "index", "side")
    told = call(
        SCRIPT, checkpoint, frames, "--out", out, "--save", *kinds, "--opacity", 0.3, "--png"
    ).stdout
    names = [f"{kind}/{number}.png" for kind in kinds for number in range(3)]
    assert files(out) == sorted([*names, "shares.csv"])
    assert "3 frames in" in told and "frames/s" in told and "could not" not in told
    found = set()
    for number, row in enumerate(table(out)):
        image = read_image(frames / f"{number}.png")
        height, width = image.shape[:2]
        classes = predictor(image)
        found |= {*np.unique(classes).tolist()}
        index, color, overlay, side = (png(out / kind / f"{number}.png") for kind in
                                       ("index", "color", "overlay", "side"))  # fmt: skip
        assert index.dtype == np.uint8 and np.array_equal(index, classes)
        assert np.array_equal(color, predictor.palette[classes])
        expected = predictor.overlay(image, classes, 0.3)
        assert np.array_equal(overlay[:height], expected)
        assert np.array_equal(side[:height, :width], image)
        assert np.array_equal(side[:height, -width:], expected)
        assert row["file"] == str(frames / f"{number}.png") and row["frame"] == "0"
        shares = predictor.shares(classes)
        assert {name: float(row[name]) for name in NAMES} == pytest.approx(shares, abs=1e-6)
    assert len(found) > 2


def test_overlays_are_jpegs_by_default(call, checkpoint, frames, tmp_path):
    for out, more in (("png", ("--png",)), ("jpg", ())):
        kinds = ("--save", "overlay", "side", "color")
        call(SCRIPT, checkpoint, frames / "2.png", "--out", tmp_path / out, *kinds, *more)
    assert files(tmp_path / "jpg") == ["color/2.png", "overlay/2.jpg", "shares.csv", "side/2.jpg"]
    for kind in ("overlay", "side"):
        exact = png(tmp_path / f"png/{kind}/2.png").astype(int)
        assert np.abs(png(tmp_path / f"jpg/{kind}/2.jpg") - exact).mean() < 12


@pytest.mark.parametrize("legend", ["appearing", "all", "none"])
def test_the_legend(call, checkpoint, frames, predictor, tmp_path, legend):
    call(
        SCRIPT, checkpoint, frames / "2.png", "--out", tmp_path / "out", "--legend", legend, "--png"
    )
    image = read_image(frames / "2.png")
    classes = predictor(image)
    entries = list(zip(DRAWN, map(tuple, PALETTE), strict=True))
    there = np.unique(classes).tolist()
    shown = {"all": entries, "none": [], "appearing": [entries[index] for index in there]}[legend]
    expected = with_legend(predictor.overlay(image, classes), shown)
    assert np.array_equal(png(tmp_path / "out/overlay/2.png"), expected)


def test_a_video_becomes_videos_and_on_request_class_maps(call, checkpoint, predictor, tmp_path):
    write_video(tmp_path / "drive é.mp4", scenes(9, 60, 80), 12.5)
    out, kinds = tmp_path / "out", ("overlay", "side", "index", "color")
    call(SCRIPT, checkpoint, tmp_path / "drive é.mp4", "--out", out, "--save", *kinds, "--json")
    frames, rate = read_video(tmp_path / "drive é.mp4")
    videos = {kind: read_video(out / kind / "drive é.mp4") for kind in ("overlay", "side", "color")}
    assert {(len(found), at) for found, at in videos.values()} == {(9, rate)}
    maps = [f"index/drive é/{number:06d}.png" for number in range(9)]
    expected = [*maps, *(f"{kind}/drive é.mp4" for kind in videos), "shares.csv", "shares.json"]
    assert files(out) == sorted(expected)
    entries = list(zip(DRAWN, map(tuple, PALETTE), strict=True))
    for number, frame in enumerate(frames):
        classes = predictor(frame)
        assert np.array_equal(png(out / maps[number]), classes)
        overlay = with_legend(predictor.overlay(frame, classes), entries)
        difference = np.abs(videos["overlay"][0][number][: len(overlay)].astype(int) - overlay)
        assert difference.mean() < 12  # a lossy codec
    rows = table(out)
    assert [int(row["frame"]) for row in rows] == list(range(9))
    (source,) = json.loads((out / "shares.json").read_text())["sources"]
    mean = np.mean([[float(row[name]) for name in NAMES] for row in rows], 0)
    assert list(source["shares"].values()) == pytest.approx(mean.tolist(), abs=1e-5)
    assert source["frames"] == 9 and source["size"] == [60, 80]
    assert source["files"]["index"] == "index/drive é"


@pytest.mark.parametrize(
    ("arguments", "facts", "slide"),
    [
        (["--short-side", 96], {"short_side": 96}, None),
        (["--long-side", 40], {"long_side": 40}, None),
        (["--slide", 64, 64], {}, (64, 64)),
    ],
)
def test_scales_and_windows(call, checkpoint, frames, tmp_path, arguments, facts, slide):
    call(SCRIPT, checkpoint, frames, "--out", tmp_path / "out", "--save", "index", *arguments)
    transform = EvalTransform.from_facts(FACTS["input"] | facts)
    predictor = Predictor(fuse(network()), transform, NAMES, PALETTE, device="cpu", slide=slide)
    for number in range(3):
        classes = predictor(read_image(frames / f"{number}.png"))
        assert np.array_equal(png(tmp_path / f"out/index/{number}.png"), classes)


def test_sources_of_all_kinds_at_once_have_names_of_their_own(call, checkpoint, frames, tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other/0.jpg").write_bytes(saved(scenes(1)[0], "JPEG"))
    write_video(tmp_path / "other/0.mp4", scenes(3))
    words = [frames, tmp_path / "other/*.jpg", tmp_path / "other/0.mp4"]
    call(SCRIPT, checkpoint, *words, "--out", tmp_path / "out", "--frames", 2)
    names = ["frames/0.png.jpg", "frames/1.png.jpg", "frames/2.png.jpg", "other/0.jpg.jpg"]
    expected = [f"overlay/{name}" for name in (*names, "other/0.mp4.mp4")]
    assert files(tmp_path / "out") == [*expected, "shares.csv"]
    assert len(read_video(tmp_path / "out/overlay/other/0.mp4.mp4")[0]) == 2


@pytest.mark.parametrize("place", [".", "predicted"])
def test_results_within_a_source_are_not_read_again(call, checkpoint, frames, place):
    arguments = (SCRIPT, checkpoint, frames, "--out", frames / place, "--save", "overlay", "index")
    call(*arguments)
    first = files(frames)
    assert len(first) == 3 + 6 + 1
    assert "left out what lies in the folders of --out" in call(*arguments).stdout
    assert files(frames) == first


def test_a_source_is_never_replaced(refuses, checkpoint, frames, tmp_path):
    (tmp_path / "overlay").mkdir()
    (tmp_path / "overlay/0.png").write_bytes(before := (frames / "0.png").read_bytes())
    words = ["overlay/0.png is a source and would be lost; name another --out"]
    refuses(words, SCRIPT, checkpoint, tmp_path / "overlay/0.png", "--out", tmp_path, "--png")
    words = ["overlay: no picture and no video there (the folders of --out are left out)"]
    refuses(words, SCRIPT, checkpoint, tmp_path / "overlay", "--out", tmp_path)
    assert (tmp_path / "overlay/0.png").read_bytes() == before
    assert not (tmp_path / "shares.csv").exists()


class Screen:
    """A window whose user quits at the picture number `quits`."""

    def __init__(self, quits=99):
        self.shown, self.quits, self.closed = [], quits, False

    def show(self, picture, *, waits, stop):
        self.shown.append((picture.shape, waits))
        self.closed = len(self.shown) >= self.quits


def test_a_window_shows_overlays_until_somebody_quits(call, checkpoint, frames, monkeypatch):
    import utils.window

    screen = Screen()
    monkeypatch.setattr(utils.window, "Window", lambda: screen)
    before = files(frames.parent)
    call(SCRIPT, checkpoint, frames, "--view", "--legend", "none")
    assert screen.shown == [((50, 70, 3), True)] * 2 + [((131, 64, 3), True)]
    assert files(frames.parent) == before
    write_video(frames.parent / "clip.mp4", scenes(40))
    monkeypatch.setattr(utils.window, "Window", lambda: Screen(quits=4))
    out = frames.parent / "out"
    call(SCRIPT, checkpoint, frames.parent / "clip.mp4", "--view", "--out", out)
    count = len(read_video(out / "overlay/clip.mp4")[0])
    assert 4 <= count < 40 and len(table(out)) == count


def test_a_camera_that_is_not_there(call, checkpoint, tmp_path):
    told = call(SCRIPT, checkpoint, "93", "--out", tmp_path / "out", status=1).stdout
    assert "problem: camera 93 cannot be opened" in told
    assert "1 of 1 sources could not be read" in told
