"""Video files of many kinds."""

import struct
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from datasets.synthetic import draw_scene
from datasets.synthetic.scenes import SMALLEST


def scenes(count: int, height: int = 48, width: int = 64) -> list[np.ndarray]:
    """Drawn streets, (height, width, 3) uint8 RGB, or the corners of them."""
    size = {"height": max(height, SMALLEST), "width": max(width, SMALLEST)}
    return [draw_scene(number, **size)[0][:height, :width] for number in range(count)]


def write_video(
    path: Path, frames: Sequence[np.ndarray], rate: float = 10, codec: str = "mp4v"
) -> None:
    """A video of RGB frames of one size."""
    size = frames[0].shape[1::-1]
    writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, cv2.VideoWriter_fourcc(*codec), rate, size)
    assert writer.isOpened()
    for frame in frames:
        writer.write(np.ascontiguousarray(frame[..., ::-1]))
    writer.release()


def read_video(path: Path) -> tuple[list[np.ndarray], float]:
    """RGB frames, upright, and their rate."""
    capture = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG)
    rate, frames = capture.get(cv2.CAP_PROP_FPS), []
    while (got := capture.read())[0]:
        frames.append(np.ascontiguousarray(got[1][..., ::-1]))
    capture.release()
    return frames, rate


def turned(mp4: bytes) -> bytes:
    """The same, with the mark of a camera that was held upright: it is shown turned by 90."""
    place = (
        mp4.find(b"tkhd") + 4 + 4 + 20 + 16
    )  # version and flags, times and ids, layer and volume
    assert struct.unpack_from(">i", mp4, place)[0] == 1 << 16
    matrix = struct.pack(">9i", 0, 1 << 16, 0, -1 << 16, 0, 0, 0, 0, 1 << 30)
    return mp4[:place] + matrix + mp4[place + len(matrix) :]
