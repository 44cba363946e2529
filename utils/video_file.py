"""Videos that are never half written."""

import contextlib
import errno
import os
import secrets
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import cv2
import numpy as np

from .errors import InputError
from .records import atomic_path

# What FFmpeg prints about a damaged file is said in a sentence.
os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")

# What OpenCV's wheels can write on every system; browsers play the second.
CODECS = {".mp4": "mp4v", ".webm": "VP80"}
MOST_SIDE = 8188  # of the first, in pixels
PROBED_EVERY = 16  # frames
PROBE = bytes(1 << 16)  # more than the encoder holds back


@contextlib.contextmanager
def video_file(path: str | Path, rate: float) -> Iterator[Callable[[np.ndarray], None]]:
    """A function that adds a frame (H, W, 3), RGB uint8, to an MP4 or WebM file, which takes the
    name `path` once it is whole; when this is left by an error, there is none.

    Sides of an odd number of pixels get one more, which repeats the last; what is larger than
    MOST_SIDE is scaled down. Frames of another size than the first are scaled to its.

    Args:
        rate: frames per second.

    Raises:
        StorageError: the disk is full, or the like. It is looked for while frames are added, as
            the encoder does not tell.
        ValueError: there was no frame, or OpenCV has no encoder here.
    """
    path, encoder = Path(path), None
    size, count = (0, 0), 0

    def add(frame: np.ndarray) -> None:
        nonlocal encoder, size, count
        if encoder is None:
            size = _encoded_size(frame.shape[:2])
            code = cv2.VideoWriter_fourcc(*CODECS[path.suffix])
            encoder = cv2.VideoWriter(str(temporary), cv2.CAP_FFMPEG, code, rate, size[::-1])
            if not encoder.isOpened():
                raise InputError(
                    f"{path}: this OpenCV cannot write videos of {size[0]}x{size[1]} (height x "
                    "width)"
                )
        if count % PROBED_EVERY == 0:
            _require_room(path.parent)
        encoder.write(cv2.cvtColor(_fitted(frame, size), cv2.COLOR_RGB2BGR))
        count += 1

    with atomic_path(path) as temporary:
        try:
            yield add
        finally:
            if encoder is not None:
                encoder.release()
        if not count:
            raise InputError(f"{path}: a video needs a frame")
        if count != _frames_of(temporary):
            raise OSError(errno.ENOSPC, "the encoder has lost frames, as on a full disk")


def write_video(path: str | Path, frames: Iterable[np.ndarray], rate: float) -> None:
    """Write all of `frames`; see `video_file`."""
    with video_file(path, rate) as add:
        for frame in frames:
            add(frame)


def _encoded_size(size: tuple[int, int]) -> tuple[int, int]:
    """(height, width) of a video for frames of `size`: even, and not above MOST_SIDE."""
    scale = min(1, MOST_SIDE / max(size))
    height, width = (max(1, round(side * scale)) for side in size)
    return height + height % 2, width + width % 2


def _fitted(frame: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    below, right = size[0] - frame.shape[0], size[1] - frame.shape[1]
    if (below, right) == (0, 0):
        return frame
    if below in (0, 1) and right in (0, 1):
        return cv2.copyMakeBorder(frame, 0, below, 0, right, cv2.BORDER_REPLICATE)
    return cv2.resize(frame, size[::-1], interpolation=cv2.INTER_AREA)


def _require_room(folder: Path) -> None:
    """Raise OSError where nothing more can be written in `folder`."""
    probe = folder / f".{secrets.token_hex(4)}.probe"
    try:
        with open(probe, "xb") as stream:
            stream.write(PROBE)
    finally:
        probe.unlink(missing_ok=True)


def _frames_of(path: Path) -> int:
    """Frames that a finished video says it has; 0 for one that cannot be opened."""
    capture = cv2.VideoCapture(str(path.absolute()), cv2.CAP_FFMPEG)
    try:
        return int(capture.get(cv2.CAP_PROP_FRAME_COUNT)) if capture.isOpened() else 0
    finally:
        capture.release()
