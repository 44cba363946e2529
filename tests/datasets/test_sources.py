"""Pictures, videos and cameras as frames: what is found, what is read, and what is said."""

import os
import sys

import cv2
import numpy as np
import pytest
from pictures import saved
from PIL import Image
from videos import read_video, scenes, turned, write_video

from datasets import DataError
from datasets.sources import Source, find_sources, further_frames, read_frames

RGB = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
PNG = saved(RGB, "PNG")


@pytest.fixture
def mixed(tmp_path):
    """A folder as they are: pictures, videos, texts, links, names in any script."""
    for name in (
        "b.png",
        "a.PNG",
        "sub/日本語 é.png",
        "sub/deep/c.png",
        ".hidden.png",
        ".git/d.png",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(PNG)
    (tmp_path / "picture").write_bytes(saved(RGB, "JPEG"))  # known by its content
    write_video(tmp_path / "clip.mp4", scenes(3))
    (tmp_path / "recording").write_bytes((tmp_path / "clip.mp4").read_bytes())
    (tmp_path / "notes.txt").write_text("notes")
    (tmp_path / "code.ts").write_text("export const GIF8 = 1;\n" * 40)
    (tmp_path / "sub/loop").symlink_to(tmp_path)
    return tmp_path


def below(folder, names):
    return [os.path.relpath(name, folder) for name in names]


FOUND = ["a.PNG", "b.png", "clip.mp4", "picture", "recording", "sub/日本語 é.png", "sub/deep/c.png"]


def test_a_folder_gives_what_is_below_it(mixed):
    found = find_sources([str(mixed)])
    assert below(mixed, [source.name for source in found.sources]) == FOUND
    kinds = [source.kind for source in found.sources]
    assert [kind == "video" for kind in kinds] == [
        name in ("clip.mp4", "recording") for name in FOUND
    ]
    assert below(mixed, found.others) == ["code.ts", "notes.txt"]
    assert not found.own and not found.closed


def test_words_of_all_kinds_give_each_source_once(mixed, monkeypatch):
    monkeypatch.chdir(mixed)
    (mixed / "7").write_bytes(PNG)
    (mixed / "x[1].png").write_bytes(PNG)
    words = ["b.png", "sub/**/*.png", ".", "0", "7", "x[1].png", "./b.png", "notes.txt"]
    found = find_sources(words)
    names = [source.name for source in found.sources]
    assert names[:3] == ["b.png", "sub/deep/c.png", "sub/日本語 é.png"]
    assert len(names) == len(FOUND) + 4 and names.count("camera_0") == 1
    kinds = {source.name: source.kind for source in found.sources}
    assert kinds["camera_0"] == "camera" and "picture" in (kinds.get("7"), kinds.get("./7"))
    assert kinds["notes.txt"] == "picture"  # whoever names it is told what is wrong with it
    with pytest.raises(DataError, match=r"notes\.txt is a text file"):
        next(read_frames([Source("notes.txt", "picture")])).image()


def test_a_pattern_skips_what_a_folder_would(mixed):
    found = find_sources([str(mixed / "*")])
    names = below(mixed, [source.name for source in found.sources])
    assert sorted(names) == sorted(FOUND)
    assert len(found.others) == 2


def test_results_of_earlier_runs_are_no_sources(mixed):
    own = [mixed / "sub", mixed / "b.png"]
    for words in ([str(mixed)], [str(mixed / "*")], [str(mixed / "**/*"), str(mixed)]):
        found = find_sources(words, own)
        names = below(mixed, [source.name for source in found.sources])
        assert sorted(names) == ["a.PNG", "clip.mp4", "picture", "recording"]
        assert found.own


@pytest.mark.parametrize(
    ("word", "words"),
    [
        ("nothing", "nothing does not exist"),
        ("B.PNG", "there is b.png"),
        ("*.gif", r"no file or folder fits .*gif"),
    ],
)
def test_a_word_that_leads_nowhere_is_refused(mixed, word, words):
    with pytest.raises(ValueError, match=words):
        find_sources([str(mixed / "b.png"), str(mixed / word)])


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root reads all")
def test_a_folder_that_is_closed_is_named(mixed):
    (mixed / "sub").chmod(0)
    try:
        found = find_sources([str(mixed)])
    finally:
        (mixed / "sub").chmod(0o755)
    assert found.closed == [f"{mixed}/sub cannot be read (Permission denied)"]
    assert len(found.sources) == 5


def test_pictures_are_read_when_their_turn_comes(tmp_path):
    (tmp_path / "a.png").write_bytes(PNG)
    frames = read_frames([Source(str(tmp_path / name), "picture") for name in ("a.png", "b.png")])
    assert np.array_equal(next(frames).image(), RGB)
    second = next(frames)
    with pytest.raises(DataError, match=r"b\.png does not exist"):
        second.image()
    (tmp_path / "b.png").write_bytes(PNG)
    assert np.array_equal(second.image(), RGB)


CODECS = {"mp4": "mp4v", "mkv": "mp4v", "avi": "MJPG", "webm": "VP80", "ts": "mp4v"}


@pytest.mark.parametrize(("suffix", "codec"), CODECS.items())
def test_videos_are_read_to_their_end(tmp_path, suffix, codec):
    path = tmp_path / f"clip.{suffix}"
    write_video(path, scenes(12), 12.5, codec)
    (source,) = find_sources([str(tmp_path)]).sources
    frames = list(read_frames([source]))
    assert [frame.number for frame in frames] == list(range(12))
    assert not any(frame.problem for frame in frames)
    expected, rate = read_video(path)
    assert all(map(np.array_equal, (frame.image() for frame in frames), expected))
    assert frames[0].rate == rate and frames[0].announced == (0 if suffix == "ts" else 12)
    assert [frame.number for frame in read_frames([source], most=5)] == list(range(5))


def test_a_video_is_shown_upright(tmp_path):
    write_video(tmp_path / "clip.mp4", scenes(2))
    (tmp_path / "turned.mov").write_bytes(turned((tmp_path / "clip.mp4").read_bytes()))
    plain, upright = (
        next(read_frames([Source(str(tmp_path / name), "video")])).image()
        for name in ("clip.mp4", "turned.mov")
    )
    assert np.array_equal(upright, np.rot90(plain, -1))


@pytest.mark.parametrize(("suffix", "codec"), [("mkv", "mp4v"), ("avi", "MJPG"), ("webm", "VP80")])
def test_a_video_whose_end_is_missing_gives_what_is_there(tmp_path, suffix, codec):
    path = tmp_path / f"clip.{suffix}"
    write_video(path, scenes(30), codec=codec)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 6 // 10])
    *frames, last = read_frames([Source(str(path), "video")])
    assert 0 < len(frames) < 30 and not any(frame.problem for frame in frames)
    assert last.number == len(frames) and last.pixels is None
    words = f"is damaged or cut off: it ends after {len(frames)} of the 30 frames"
    assert words in last.problem
    with pytest.raises(DataError, match=words):
        last.image()
    assert not list(read_frames([Source(str(path), "video")], most=len(frames)))[-1].problem


def test_what_is_no_video_is_said(tmp_path):
    write_video(tmp_path / "clip.mp4", scenes(3))
    whole = (tmp_path / "clip.mp4").read_bytes()
    contents = {
        "half.mp4": (whole[: len(whole) // 2], "cannot be decoded; it is damaged or coded as"),
        "text.mov": (b"no video at all", "is no video; MP4, MOV, "),
        "noise.avi": (bytes(range(256)), "is no video; MP4, MOV, "),
        "empty.mkv": (b"", "is empty"),
        "picture.mp4": (PNG, "is no video; MP4, MOV, "),
    }
    for name, (data, words) in contents.items():
        (tmp_path / name).write_bytes(data)
        (frame,) = read_frames([Source(str(tmp_path / name), "video")])
        assert f"{tmp_path / name} {words}" in frame.problem, frame.problem


@pytest.mark.parametrize(
    "text",
    [
        "ffconcat version 1.0\nfile 'clip.mp4'\n",
        "#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\nclip.mp4\n#EXT-X-ENDLIST\n",
        "ffconcat version 1.0\nfile 'clip.mp4'\n\0\0\xff",
    ],
)
def test_a_playlist_leads_to_no_other_file(tmp_path, text):
    write_video(tmp_path / "clip.mp4", scenes(3))
    (tmp_path / "list.mp4").write_text(text)
    (frame,) = read_frames([Source(str(tmp_path / "list.mp4"), "video")])
    assert "is no video; MP4" in frame.problem


def test_names_are_no_protocols_and_no_series(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    frames = scenes(3)
    write_video(tmp_path / "clip.mp4", frames)
    for name in ("http:clip.mp4", "clip%03d.mp4", "視頻 é.mp4"):
        (tmp_path / name).write_bytes((tmp_path / "clip.mp4").read_bytes())
        assert len(list(read_frames([Source(name, "video")]))) == 3


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere names are always Unicode")
def test_names_that_are_no_unicode(tmp_path):
    folder = os.fsencode(tmp_path)
    for name, data in ((b"lat\xe9in.png", PNG), (b"lat\xe9in.mp4", b"\0\0\0\x18ftypisom")):
        with open(os.path.join(folder, name), "wb") as stream:
            stream.write(data)
    video, picture = read_frames(find_sources([str(tmp_path)]).sources)
    assert np.array_equal(picture.image(), RGB)
    assert video.problem.endswith("is a video whose name is no UTF-8; rename it")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no named pipes")
def test_pipes_are_not_waited_for(tmp_path):
    for name in ("pipe", "pipe.png", "pipe.mp4"):
        os.mkfifo(tmp_path / name)
    found = find_sources([str(tmp_path)])
    assert below(tmp_path, found.others) == ["pipe"]
    for frame in read_frames(found.sources):
        with pytest.raises(DataError, match="is not a file"):
            frame.image()


class Camera:
    """Stands in for one that is plugged in, and is unplugged after some pictures."""

    def __init__(self, pictures, rate):
        self.pictures, self.rate = iter(pictures), rate

    def __call__(self, number):
        assert number == 3
        return self

    def isOpened(self):
        return True

    def get(self, key):
        return self.rate if key == cv2.CAP_PROP_FPS else -1.0

    def read(self):
        picture = next(self.pictures, None)
        return picture is not None, picture

    def release(self):
        self.pictures = None


@pytest.mark.parametrize(("rate", "expected"), [(30.0, 30), (0.0, 25), (float("nan"), 25)])
def test_a_camera(monkeypatch, rate, expected):
    monkeypatch.setattr(cv2, "VideoCapture", camera := Camera([RGB] * 5, rate))
    (source,) = find_sources(["3"]).sources
    *frames, last = read_frames([source])
    assert len(frames) == 5 and last.problem == "camera 3 gave no further picture after 5"
    assert np.array_equal(frames[0].image(), RGB[..., ::-1])
    assert {(frame.rate, frame.announced) for frame in frames} == {(expected, 0)}
    assert camera.pictures is None
    monkeypatch.setattr(cv2, "VideoCapture", Camera([], rate))
    (frame,) = read_frames([source])
    assert frame.problem == "camera 3 gave no further picture after 0"
    monkeypatch.setattr(Camera, "isOpened", lambda _: False)
    (frame,) = read_frames([source])
    assert frame.problem == "camera 3 cannot be opened; is there one, and is it free?"


def test_a_video_is_closed_when_nobody_reads_on(monkeypatch):
    monkeypatch.setattr(cv2, "VideoCapture", camera := Camera([RGB] * 5, 30.0))
    frames = read_frames(find_sources(["3"]).sources)
    next(frames)
    frames.close()
    assert camera.pictures is None


@pytest.mark.parametrize(
    ("kind", "words"),
    [("GIF", "has 3 frames"), ("TIFF", "has 3 pages"), ("WEBP", "has 3 frames"), ("JPEG", "")],
)
def test_of_several_pictures_in_a_file_the_first_is_read(tmp_path, kind, words):
    gray = np.full((20, 30), 60, np.uint8)
    more = [Image.fromarray(gray + step) for step in (60, 120)]
    options = {} if kind == "JPEG" else {"save_all": True, "append_images": more}
    (tmp_path / "a.tif").write_bytes(saved(gray, kind, **options))
    expected = f"{words}, of which the first is read" if words else ""
    assert further_frames(tmp_path / "a.tif") == expected
    image = next(read_frames([Source(str(tmp_path / "a.tif"), "picture")])).image()
    assert abs(float(image.mean()) - 60) < 2
    assert further_frames(tmp_path / "absent") == ""
