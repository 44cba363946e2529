"""What the page shows, without the page."""

import dataclasses
import importlib
import os

import cv2
import numpy as np
import pytest

from datasets import DataError, get_meta
from datasets.synthetic import draw_scene
from utils.video_file import write_video


@pytest.fixture
def viewing():
    return importlib.import_module("viewing")


@pytest.fixture
def viewer(viewing, weights):
    weights("pidnet_s", "a/best.pt")
    folder = weights("rtlinearformer_slim", "b/best.pt")
    return viewing.Viewer([folder], folder)


def test_two_networks_on_one_picture(viewing, viewer):
    titles = list(viewer.networks()[0])
    assert titles == [
        "pidnet_s, synthetic (a/best.pt)", "rtlinearformer_slim, synthetic (b/best.pt)",
    ]  # fmt: skip
    footage, told = viewing.scene(0), []
    answers = viewer.answers(footage, titles, told.append)
    assert told == [0.5, 1.0]
    seen = viewing.sight(footage, answers, 0, 0.5)
    maps = [answer.predictor(footage.frame(0)) for answer in answers]
    for answer, classes, overlay in zip(answers, maps, seen.overlays, strict=True):
        assert (overlay == answer.predictor.overlay(footage.frame(0), classes, 0.5)).all()
        assert answer.milliseconds > 0 and "cpu" in answer.deployment
    assert seen.differing == (maps[0] != maps[1]).mean() > 0
    assert seen.difference.shape == (180, 240, 3)
    assert sum(swap.share for swap in seen.swaps) <= seen.differing + 1e-9
    assert [sum(row.share for row in rows) for rows in seen.shares] == pytest.approx([1, 1])


def test_opacity_and_frame_run_no_network(viewing, viewer, monkeypatch):
    footage = viewing.scene(1)
    answers = viewer.answers(footage, list(viewer.networks()[0]))
    monkeypatch.setattr(viewing.Predictor, "__call__", lambda *_: pytest.fail("a network ran"))
    image = footage.frame(0)
    assert (viewing.sight(footage, answers, 0, 0.0).overlays[0] == image).all()
    colors = viewing.sight(footage, answers, 7, 1.0).overlays[1]
    palette = {tuple(color) for color in get_meta("synthetic").palette}
    assert {tuple(color) for color in np.unique(colors.reshape(-1, 3), axis=0)} <= palette


def test_without_networks_there_is_still_a_picture(viewing, tmp_path):
    viewer = viewing.Viewer([tmp_path / "not there"], tmp_path)
    assert viewer.networks() == ({}, [])
    assert viewer.answers(viewing.scene(0), []) == []


def test_networks_come_go_and_change(viewing, weights):
    folder = weights()
    viewer = viewing.Viewer([folder], folder)
    (title,), _ = viewer.networks()
    first = viewer.answers(viewing.scene(0), [title])[0]
    assert viewer.answers(viewing.scene(0), [title])[0].predictor is first.predictor  # kept
    weights(seed=1)
    os.utime(folder / "best.pt", ns=(1, 2))
    second = viewer.answers(viewing.scene(0), [title])[0]
    assert not np.array_equal(second.classes[0], first.classes[0])
    weights("rtlinearformer_slim", "new/best.pt")
    assert len(viewer.networks()[0]) == 2
    (folder / "best.pt").unlink()
    with pytest.raises(ValueError, match="there is no pidnet_s, synthetic"):
        viewer.answers(viewing.scene(0), [title])


def test_a_choice_is_no_path(viewing, viewer, tmp_path):
    for title in ("/etc/passwd", str(tmp_path / "weights/a/best.pt"), "a/best.pt", ""):
        with pytest.raises(ValueError, match="choose another"):
            viewer.answers(viewing.scene(0), [title])


@pytest.mark.medium
def test_few_networks_stay_in_memory(viewing, weights):
    for number in range(viewing.LOADED + 2):
        folder = weights(place=f"{number}/best.pt")
    viewer = viewing.Viewer([folder], folder)
    for title in viewer.networks()[0]:
        viewer.answers(viewing.scene(0), [title])
    assert viewer._load.cache_info().currsize == viewing.LOADED


def clip_of(path, count, rate=10.0, size=(64, 80)):
    scenes = [draw_scene(number, 0, *size)[0] for number in range(3)]
    write_video(path, (scenes[index % 3] for index in range(count)), rate)
    return path


def test_a_clip_has_a_class_map_of_every_frame(viewing, viewer, tmp_path):
    footage = viewing.read_footage(clip_of(tmp_path / "c.webm", 6), "c.webm")
    assert footage.rate == 10 and len(footage.frames) == 6 and footage.remark == ""
    answers = viewer.answers(footage, list(viewer.networks()[0]))
    assert viewing.seen_frames(answers) == 6
    film = list(viewing.film(footage, answers, 0.5))
    assert len(film) == 6 and film[0].shape == (64, 160, 3)
    third = viewing.sight(footage, answers, 2, 0.5)
    assert (film[2][:, :80] == third.overlays[0]).all()
    assert not (film[1][:, :80] == third.overlays[0]).all()


def test_a_slow_network_looks_at_some_frames(viewing, viewer, tmp_path, monkeypatch):
    footage = viewing.read_footage(clip_of(tmp_path / "c.webm", 6), "c.webm")
    monkeypatch.setattr(viewing, "CLIP_PATIENCE", 0.0)
    answers = viewer.answers(footage, list(viewer.networks()[0]))
    assert viewing.seen_frames(answers) == 1 and len(list(viewing.film(footage, answers, 1))) == 1
    assert viewing.sight(footage, answers, 5, 0.5).overlays[0].shape == (64, 80, 3)


def test_clips_are_read_up_to_a_length(viewing, tmp_path, monkeypatch):
    path = clip_of(tmp_path / "c.webm", 30)
    monkeypatch.setattr(viewing, "CLIP_SECONDS", 2)
    footage = viewing.read_footage(path, "c.webm")
    assert len(footage.frames) == 20 and "the first 20 frames are taken (2.0 s)" in footage.remark
    monkeypatch.setattr(viewing, "CLIP_FRAMES", 7)
    assert len(viewing.read_footage(path, "c.webm").frames) == 7


def test_a_clip_that_breaks_off_is_shown_to_there(viewing, tmp_path):
    path = clip_of(tmp_path / "c.webm", 40, size=(180, 240))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    footage = viewing.read_footage(path, "c.webm")
    assert 0 < len(footage.frames) < 38 and "c.webm breaks off after" in footage.remark


@pytest.mark.parametrize("size", [(2100, 2200), (2, 20_000)])
def test_large_pictures_are_reduced(viewing, tmp_path, size):
    path = tmp_path / "large.png"
    cv2.imwrite(str(path), np.zeros((*size, 3), np.uint8))
    footage = viewing.read_footage(path, "large.png")
    height, width = footage.frame(0).shape[:2]
    assert height * width <= viewing.SHOWN_PIXELS and max(height, width) <= viewing.LONGEST
    assert f"large.png has {size[1]} x {size[0]} pixels" in footage.remark


def test_a_picture_that_a_network_would_enlarge_is_refused(viewing, viewer, monkeypatch):
    monkeypatch.setattr(viewing, "FED_PIXELS", 100 * 100)
    with pytest.raises(ValueError, match="180x240; take one that is less long"):
        viewer.answers(viewing.scene(0), list(viewer.networks()[0]))


def test_pictures_keep_their_pixels(viewing, tmp_path):
    scene, _ = draw_scene(3, 0, 60, 80)
    cv2.imwrite(str(tmp_path / "scene.bmp"), scene[..., ::-1])
    footage = viewing.read_footage(tmp_path / "scene.bmp", "scene.bmp")
    assert (footage.frame(0) == scene).all() and footage.remark == ""


HOSTILE = {
    "text.png": (b"hello\n" * 20, "is a text file"),
    "drawing.jpg": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "is an SVG drawing"),
    "page.jpg": (b"<!doctype html><script>alert(1)</script>", "is an HTML page"),
    "list.mp4": (b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n", "is a text file"),
    "empty.png": (b"", "is empty"),
    "noise.webm": (b"\x1a\x45\xdf\xa3" + bytes(range(256)), "cannot be decoded"),
    "noise.mp4": (b"\0\0\0\x18ftypisom" + bytes(range(256)), "cannot be decoded"),
    "weights.png": (b"PK\x03\x04" + bytes(99), "is a ZIP archive"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_is_no_picture_is_one_sentence(viewing, tmp_path, name):
    content, words = HOSTILE[name]
    (tmp_path / "upload").write_bytes(content)
    with pytest.raises(DataError) as error:
        viewing.read_footage(tmp_path / "upload", name)
    text = str(error.value)
    assert text.startswith(f"{name} {words}") and str(tmp_path) not in text and "\n" not in text


def test_a_closed_viewer_computes_no_more(viewing, viewer, tmp_path):
    footage, titles = viewing.scene(0), list(viewer.networks()[0])
    answers = viewer.answers(footage, titles)
    viewer.write_film(tmp_path / "film.webm", dataclasses.replace(footage, rate=10.0), answers, 0.5)
    viewer.close()
    with pytest.raises(ValueError, match="about to end"):
        viewer.answers(footage, titles)
    with pytest.raises(ValueError, match="about to end"):
        viewer.write_film(tmp_path / "film.webm", footage, answers, 0.5)


EVIL = "<script>alert(1)</script>"


def test_words_of_files_are_no_markup(viewing, weights):
    text = importlib.import_module("web_text")
    folder = weights(place="<b>best.pt")
    viewer = viewing.Viewer([folder], folder)
    answer = viewer.answers(viewing.scene(0), list(viewer.networks()[0]))[0]
    told = (
        text.failure(EVIL)
        + text.networks_there(0, [EVIL])
        + text.message(viewing.Footage((), remark=EVIL), [])
        + text.shares_table(answer, [(EVIL, (1, 2, 3), 0.5)])
        + text.swaps_table(0.5, [(EVIL, EVIL, 0.25)])
    )
    assert "<script>" not in told and told.count("&lt;script&gt;") == 6 and "<b>best" not in told


def test_what_the_tables_say(viewing, viewer):
    text = importlib.import_module("web_text")
    answer = viewer.answers(viewing.scene(0), list(viewer.networks()[0])[:1])[0]
    table = text.shares_table(answer, [("road", (1, 2, 3), 0.4321), ("car", (4, 5, 6), 0.0002)])
    assert "43.2 %" in table and "rgb(1, 2, 3)" in table and "below 0.1 %" in table
    assert f"{answer.milliseconds:.1f} ms" in table and "a/best.pt" in table
    assert "make demo" in text.networks_there(0, []) and "2 files are" in text.networks_there(
        1, ["a", "b"]
    )
