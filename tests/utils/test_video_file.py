"""Videos hold all their frames, or are not there."""

import numpy as np
import pytest
from processes import small_disk, small_files
from videos import read_video, scenes

from utils.records import StorageError
from utils.video_file import MOST_SIDE, video_file

NOISE = np.random.default_rng(0).integers(0, 256, (240, 320, 3), dtype=np.uint8)


def close(one, two, within=6):
    assert one.shape == two.shape
    return float(np.abs(one.astype(int) - two.astype(int)).mean()) < within


@pytest.mark.parametrize("suffix", [".mp4", ".webm"])
@pytest.mark.parametrize("size", [(48, 64), (47, 63), (1, 1), (1, 200), (301, 2)])
@pytest.mark.parametrize("rate", [12.5, 29.97])
def test_frames_come_back(tmp_path, size, rate, suffix):
    if size == (1, 1) and suffix == ".webm":
        pytest.skip("OpenCV's VP8 encoder takes no 2x2")
    frames, path = scenes(7, *size), tmp_path / "sub" / f"é{suffix}"
    with video_file(path, rate) as add:
        for frame in frames:
            add(frame)
        assert not path.exists()
    assert [p.name for p in (tmp_path / "sub").iterdir()] == [path.name]
    read, found = read_video(path)
    assert len(read) == 7 and found == pytest.approx(rate, rel=2e-3)
    even = tuple(side + side % 2 for side in size)
    assert read[0].shape == (*even, 3)
    within = 6 if suffix == ".mp4" else 40  # VP8 spends few bits on scenes that change
    for one, other in zip(read, frames, strict=True):
        assert close(one[: size[0], : size[1]], other, within)


def test_frames_of_another_size_are_fitted(tmp_path):
    (first, second), (large,) = scenes(2), scenes(1, 96, 128)
    with video_file(tmp_path / "x.mp4", 10) as add:
        for frame in (first, large, second):
            add(frame)
    read, _ = read_video(tmp_path / "x.mp4")
    assert len(read) == 3 and {frame.shape for frame in read} == {first.shape}
    assert close(read[2], second)


def test_what_the_codec_does_not_hold_is_scaled_down(tmp_path):
    with video_file(tmp_path / "x.mp4", 10) as add:
        add(np.full((100, 3 * MOST_SIDE, 3), 80, np.uint8))
    ((frame,), _) = read_video(tmp_path / "x.mp4")
    assert frame.shape == (34, MOST_SIDE, 3)


def test_an_error_leaves_no_video(tmp_path):
    with pytest.raises(KeyError), video_file(tmp_path / "x.mp4", 10) as add:
        add(NOISE)
        raise KeyError
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("earlier", [None, b"before"])
def test_a_video_that_cannot_grow_is_not_taken_for_whole(tmp_path, earlier):
    """The encoder does not say it, whatever it is that keeps the file from growing."""
    path = tmp_path / "x.mp4"
    if earlier:
        path.write_bytes(earlier)
    words = r"x\.mp4 cannot be written: the encoder has lost frames, as on a full disk; .* are free"
    with (
        small_files(150_000),
        pytest.raises(StorageError, match=words),
        video_file(path, 10) as add,
    ):
        for _ in range(30):
            add(NOISE)
    assert [p.name for p in tmp_path.iterdir()] == (["x.mp4"] if earlier else [])
    assert not earlier or path.read_bytes() == earlier


def test_a_full_disk_is_noticed_on_the_way(tmp_path):
    count, words = 0, "x.mp4 cannot be written: No space left on device; .* nothing was written"
    with small_disk(tmp_path, "512k") as disk:
        with (
            pytest.raises(StorageError, match=words),
            video_file(disk / "x.mp4", 10) as add,
        ):
            for count in range(1000):  # noqa: B007
                add(NOISE)
        assert not any(disk.iterdir())
    assert 0 < count < 100
