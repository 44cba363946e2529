"""Video files, and files of strangers."""

import struct
import zlib

import cv2
import numpy as np
import pytest

from datasets import DataError, read_image
from datasets.files import Clip, is_video
from datasets.synthetic import draw_scene
from utils.video_file import write_video

KINDS = {"webm": "VP80", "mp4": "mp4v", "mov": "mp4v", "avi": "MJPG", "mkv": "VP80"}
PLAYLIST = "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nfile://{}\n#EXT-X-ENDLIST\n"


def frames(count=12, size=(60, 80)):
    """A bright square that moves to the right over a dark ground."""
    for index in range(count):
        frame = np.full((*size, 3), (30, 60, 20), np.uint8)
        frame[20:40, 4 * index : 4 * index + 20] = (230, 90, 40)
        yield frame


@pytest.fixture
def clip(tmp_path):
    def write(ending="avi", **more):
        path = tmp_path / f"clip.{ending}"
        video = cv2.VideoWriter(
            str(path), cv2.CAP_FFMPEG, cv2.VideoWriter_fourcc(*KINDS[ending]), 10, (80, 60)
        )
        assert video.isOpened()
        for frame in frames(**more):
            video.write(np.ascontiguousarray(frame[..., ::-1]))
        video.release()
        return path

    return write


@pytest.mark.parametrize("ending", KINDS)
def test_every_frame_in_its_order(clip, ending):
    path = clip(ending)
    assert is_video(path)
    video = Clip(path)
    assert video.rate == 10 and video.size == (60, 80) and video.count in (0, 12)
    for read, written in zip(video, frames(), strict=True):
        assert read.shape == written.shape and read.dtype == np.uint8
        assert np.abs(read.astype(int) - written).mean() < 12  # red and blue keep their places


def test_it_is_read_to_where_it_breaks_off(clip):
    path = clip("avi", count=40)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    video = Clip(path)
    assert video.count == 40 and 5 < len(list(video)) < 35


def test_the_rest_need_not_be_read(clip):
    video = Clip(clip())
    assert next(iter(video)).shape == (60, 80, 3)


@pytest.mark.parametrize("ending", ["webm", "mp4"])
@pytest.mark.parametrize("damage", ["beginning", "noise", "empty"])
def test_damage_is_one_sentence(clip, ending, damage, capfd):
    path = clip(ending)
    whole = path.read_bytes()
    noise = np.random.default_rng(0).bytes(len(whole) - 40)
    path.write_bytes({"beginning": whole[:60], "noise": whole[:40] + noise, "empty": b""}[damage])
    capfd.readouterr()  # OpenCV tells of what it writes
    with pytest.raises(DataError, match=r"^clip.\w+ (cannot be decoded|is empty)"):
        Clip(path, "clip." + ending)
    assert not capfd.readouterr().err


@pytest.mark.parametrize("seed", range(30))
def test_random_damage_ends(clip, seed):
    """Whatever bytes are wrong: frames or a sentence."""
    path, random = clip(("webm", "mp4", "avi")[seed % 3]), np.random.default_rng(seed)
    content = np.frombuffer(path.read_bytes(), np.uint8).copy()
    where = random.integers(12, len(content), 40)
    content[where] = random.integers(0, 256, 40)
    path.write_bytes(content.tobytes())
    try:
        assert all(frame.shape == (60, 80, 3) for frame in Clip(path, most_pixels=60 * 80))
    except DataError as error:
        assert str(path) in str(error)


def test_what_leads_elsewhere_is_no_video(clip, tmp_path):
    """FFmpeg would follow a list, to files of this machine too."""
    path = tmp_path / "list.mp4"
    path.write_text(PLAYLIST.format(clip()))
    assert not is_video(path)
    with pytest.raises(DataError, match="no video"):
        Clip(path)


@pytest.mark.parametrize("ending", [".png", ".jpg", ".webp", ".bmp", ".avif"])
def test_pictures_are_no_videos(tmp_path, ending):
    path = tmp_path / f"picture{ending}"
    if not cv2.haveImageWriter(str(path)):
        pytest.skip(f"this OpenCV does not write {ending}")
    cv2.imwrite(str(path), draw_scene(0, 0, 60, 80)[0])
    assert not is_video(path)


def test_large_frames_are_refused_before_they_are_read(clip):
    with pytest.raises(DataError, match="frames of 4800 pixels; at most 4000 are read"):
        Clip(clip(), most_pixels=4000)


def test_a_written_clip_plays_in_browsers(tmp_path):
    path = tmp_path / "clip.webm"
    write_video(path, frames(), 10.0)
    assert path.read_bytes().startswith(b"\x1a\x45\xdf\xa3") and b"V_VP8" in path.read_bytes()
    assert len(list(Clip(path))) == 12
    with pytest.raises(ValueError, match="needs a frame"):
        write_video(path, iter(()), 10.0)


def png_of(width, height):
    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(
            ">I", zlib.crc32(kind + content)
        )  # fmt: skip

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(10_000)))
    return b"\x89PNG\r\n\x1a\n" + body + chunk(b"IEND", b"")


@pytest.mark.parametrize("size", [(60_000, 60_000), (10_000, 4_001)])
def test_a_header_that_claims_too_much_is_believed(tmp_path, size):
    path = tmp_path / "bomb.png"
    path.write_bytes(png_of(*size))
    with pytest.raises(DataError, match=r"^bomb.png has .* pixels; at most 40000000 are read$"):
        read_image(path, "bomb.png", most_pixels=40_000_000)


@pytest.mark.parametrize("ending", [".hdr", ".ras", ".pfm"])
def test_what_has_no_known_header_is_not_decoded_for_strangers(tmp_path, ending):
    path = tmp_path / f"picture{ending}"
    picture = np.ones((4, 5, 3), np.uint8 if ending == ".ras" else np.float32)
    assert cv2.imwrite(str(path), picture)
    with pytest.raises(DataError):
        read_image(path, most_pixels=40_000_000)


def test_pictures_within_the_limit_are_the_same(tmp_path):
    path = tmp_path / "picture.png"
    cv2.imwrite(str(path), draw_scene(0, 0, 60, 80)[0])
    assert (read_image(path, most_pixels=4800) == read_image(path)).all()
    with pytest.raises(DataError, match="at most 4799"):
        read_image(path, most_pixels=4799)
