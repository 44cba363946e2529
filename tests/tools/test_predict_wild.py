"""Prediction of whatever people have: what is read, and what is said of the rest."""

import json
import os
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from pictures import saved
from PIL import Image
from prediction import SCRIPT, files, png, table
from videos import read_video, scenes, turned, write_video

from datasets import read_image


def wild(folder: Path) -> dict[str, np.ndarray]:
    """Pictures of all sorts; by name what has to be seen in them."""
    rgb = scenes(1, 60, 90)[0]
    picture = Image.fromarray(rgb)
    alpha = np.dstack([rgb, np.full(rgb.shape[:2], 90, np.uint8)])
    deep = rgb.astype(np.uint16) * 257
    contents = {
        "turned.jpg": saved(rgb, "JPEG", orientation=6, quality=95),
        "turned.png": saved(rgb, "PNG", orientation=3),
        "gray.png": saved(rgb[..., 0], "PNG"),
        "alpha.png": saved(alpha, "PNG"),
        "deep.png": cv2.imencode(".png", deep[..., ::-1])[1].tobytes(),
        "deep.tif": cv2.imencode(".tif", deep[..., ::-1])[1].tobytes(),
        "row.png": saved(rgb[:1], "PNG"),
        "column.png": saved(rgb[:, :1].copy(), "PNG"),
        "pixel.png": saved(rgb[:1, :1].copy(), "PNG"),
        "日本語 ñ.png": saved(rgb, "PNG"),
        "name without end": saved(rgb, "PNG"),
        f"{'x' * 251}.png": saved(rgb, "PNG"),
    }
    for name, data in contents.items():
        (folder / name).write_bytes(data)
    picture.convert("P").save(folder / "palette.png")
    picture.convert("P").save(folder / "palette.gif")
    picture.convert("CMYK").save(folder / "cmyk.jpg", quality=98)
    picture.convert("1").save(folder / "bits.png")
    exact = {
        "turned.png": rgb[::-1, ::-1],
        "gray.png": np.dstack([rgb[..., 0]] * 3),
        "row.png": rgb[:1],
        "column.png": rgb[:, :1],
        "pixel.png": rgb[:1, :1],
        "palette.png": np.asarray(picture.convert("P").convert("RGB")),
        "bits.png": np.asarray(picture.convert("1").convert("RGB")),
        **{name: rgb for name in ("alpha.png", "deep.png", "deep.tif", "日本語 ñ.png")},
    }
    rest = {*(p.name for p in folder.iterdir())} - {*exact}
    return exact | {name: read_image(folder / name) for name in rest}


def test_pictures_of_all_sorts(call, checkpoint, predictor, tmp_path):
    folder, out = tmp_path / "wild", tmp_path / "out"
    folder.mkdir()
    expected = wild(folder)
    call(SCRIPT, checkpoint, folder, "--out", out, "--save", "index", "overlay")
    rows = {Path(row["file"]).name for row in table(out)}
    assert rows == {*expected} and len(files(out / "index")) == len(expected)
    by_start = {name[:40]: image for name, image in expected.items()}
    for path in (out / "index").iterdir():
        name = path.name.removesuffix(".png")
        image = by_start[name[:40]]
        assert np.array_equal(png(path), predictor(np.ascontiguousarray(image))), name
    assert expected["turned.jpg"].shape == (90, 60, 3)


def test_what_cannot_be_read_is_named_and_the_rest_goes_on(run, checkpoint, frames, tmp_path):
    whole = (frames / "0.png").read_bytes()
    (frames / "cut.png").write_bytes(whole[: len(whole) // 2])
    (frames / "text.jpg").write_text("no picture")
    (frames / "empty.png").touch()
    (frames / "phone.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(16))
    (frames / "gone.png").symlink_to("nowhere.png")
    (frames / "README.txt").write_text("read me")
    write_video(frames / "drive.mkv", scenes(20))
    data = (frames / "drive.mkv").read_bytes()
    (frames / "drive.mkv").write_bytes(data[: len(data) * 6 // 10])
    write_video(frames / "half.mp4", scenes(20))
    (frames / "half.mp4").write_bytes((frames / "half.mp4").read_bytes()[:2000])
    done = run(SCRIPT, checkpoint, frames, "--out", tmp_path / "out", "--json", status=1)
    assert done.stderr == ""  # decoders are quiet about what is said in a sentence
    assert "left out 1 that are no picture and no video" in done.stdout
    assert f"{frames}/README.txt\n" in done.stdout
    problems = [line for line in done.stdout.splitlines() if line.startswith("problem: ")]
    words = {
        "cut.png is a truncated PNG", "text.jpg is a text file", "empty.png is empty",
        "phone.heic is a HEIC", "gone.png is a symbolic link to nowhere.png",
        "drive.mkv is damaged or cut off: it ends after", "half.mp4 cannot be decoded",
    }  # fmt: skip
    assert len(problems) == 7 and all(any(w in line for line in problems) for w in words)
    assert "7 of 10 sources could not be read, or not to their end" in done.stdout
    written = {"0.jpg", "1.jpg", "2.jpg", "drive.mp4"}
    assert {*files(tmp_path / "out/overlay")} == written
    kept = len(read_video(tmp_path / "out/overlay/drive.mp4")[0])
    assert 0 < kept < 20 and f"ends after {kept} of the 20 frames" in done.stdout
    record = json.loads((tmp_path / "out/shares.json").read_text())["sources"]
    assert sum("problem" in source for source in record) == 7
    assert len(table(tmp_path / "out")) == 3 + kept


def test_of_an_animation_the_first_frame_is_predicted(call, checkpoint, predictor, tmp_path):
    one, two = scenes(2)
    more = {"save_all": True, "append_images": [Image.fromarray(two)]}
    (tmp_path / "a.tif").write_bytes(saved(one, "TIFF", **more))
    out = tmp_path / "out"
    told = call(SCRIPT, checkpoint, tmp_path / "a.tif", "--out", out, "--save", "index").stdout
    assert "note: " in told and "a.tif has 2 pages, of which the first is read" in told
    assert np.array_equal(png(out / "index/a.png"), predictor(one))


def test_a_video_of_a_camera_held_upright(call, checkpoint, predictor, tmp_path):
    write_video(tmp_path / "clip.mp4", scenes(2, 60, 80))
    (tmp_path / "turned.mov").write_bytes(turned((tmp_path / "clip.mp4").read_bytes()))
    out = tmp_path / "out"
    call(SCRIPT, checkpoint, tmp_path / "turned.mov", "--out", out, "--save", "index")
    upright = np.rot90(read_video(tmp_path / "clip.mp4")[0][1], -1)
    classes = predictor(np.ascontiguousarray(upright))
    assert np.array_equal(png(out / "index/turned/000001.png"), classes)


def test_a_picture_that_is_too_long_for_jpeg_is_named(call, checkpoint, frames, tmp_path):
    (frames / "row.png").write_bytes(saved(np.full((1, 65600, 3), 90, np.uint8), "PNG"))
    out = tmp_path / "out"
    arguments = (SCRIPT, checkpoint, frames, "--out", out, "--legend", "none")
    told = call(*arguments, status=1).stdout
    assert "row.jpg: a picture of shape (1, 65600, 3) cannot be written as such" in told
    assert files(out / "overlay") == ["0.jpg", "1.jpg", "2.jpg"]
    call(*arguments, "--png")
    assert "row.png" in files(out / "overlay")


def test_a_picture_that_would_be_enlarged_beyond_reason_is_named(call, checkpoint, tmp_path):
    (tmp_path / "row.png").write_bytes(saved(scenes(1, 1, 400)[0], "PNG"))
    arguments = ("--out", tmp_path / "out", "--short-side", 500)
    told = call(SCRIPT, checkpoint, tmp_path / "row.png", *arguments, status=1).stdout
    assert "row.png would be brought from 1x400 to 500x200000" in told


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere names are always Unicode")
def test_a_name_that_is_no_unicode(run, checkpoint, tmp_path):
    name = os.fsencode(tmp_path) + b"/lat\xe9in.png"
    with open(name, "wb") as stream:
        stream.write(saved(scenes(1)[0], "PNG")[:-20])
    done = run(SCRIPT, checkpoint, tmp_path, "--out", tmp_path / "out", status=1)
    assert r"lat\udce9in.png is a truncated PNG" in done.stdout
    with open(name, "wb") as stream:
        stream.write(saved(scenes(1)[0], "PNG"))
    run(SCRIPT, checkpoint, tmp_path, "--out", tmp_path / "out")
    assert os.listdir(os.fsencode(tmp_path / "out/overlay")) == [b"lat\xe9in.jpg"]
    assert b"/lat\xe9in.png,0," in (tmp_path / "out/shares.csv").read_bytes()
