"""Picture files of many kinds, as bytes."""

import io
import struct
import zlib

import cv2
import numpy as np
from PIL import Image

from datasets import EvalTransform, SegmentationDataset, quick_check
from datasets.checking import CheckedList, Summary, examine_all

_ORIENTATION = 274


def saved(array: np.ndarray, kind: str, orientation: int = 0, **options) -> bytes:
    """`array` (RGB or values) as Pillow writes it; with an EXIF orientation if one is given."""
    if orientation:
        exif = Image.Exif()
        exif[_ORIENTATION] = orientation
        options["exif"] = exif
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, kind, **options)
    return stream.getvalue()


def tiff(array: np.ndarray, orientation: int = 1, compression: int = 1) -> bytes:
    """An unpacked TIFF of any number of bands and any type of numbers."""
    height, width = array.shape[:2]
    bands = 1 if array.ndim == 2 else array.shape[2]
    color = bands >= 3
    content = np.ascontiguousarray(array).tobytes()
    tags = {
        256: ("I", [width]),
        257: ("I", [height]),
        258: ("H", [8 * array.dtype.itemsize] * bands),
        259: ("H", [compression]),
        262: ("H", [2 if color else 1]),
        273: ("I", [0]),
        _ORIENTATION: ("H", [orientation]),
        277: ("H", [bands]),
        278: ("I", [height]),
        279: ("I", [len(content)]),
        339: ("H", [{"u": 1, "i": 2, "f": 3}[array.dtype.kind]] * bands),
    }
    extra = bands - (3 if color else 1)
    if extra:
        tags[338] = ("H", [0] * extra)
    behind = 8 + 2 + 12 * len(tags) + 4
    large = sum(len(values) * (2 if code == "H" else 4) for code, values in tags.values())
    tags[273] = ("I", [behind + large])  # more room than is needed
    entries, outside = b"", b""
    for number, (code, values) in sorted(tags.items()):
        packed = struct.pack(f"<{len(values)}{code}", *values)
        entries += struct.pack("<HHI", number, 3 if code == "H" else 4, len(values))
        if len(packed) <= 4:
            entries += packed.ljust(4, b"\0")
        else:
            entries += struct.pack("<I", behind + len(outside))
            outside += packed
    head = b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4)
    return head + outside.ljust(large, b"\0") + content


def png_chunk(kind: bytes, content: bytes) -> bytes:
    """One chunk of a PNG."""
    checksum = struct.pack(">I", zlib.crc32(kind + content))
    return struct.pack(">I", len(content)) + kind + content + checksum


def png_header(width: int, height: int, depth: int = 8, color: int = 0) -> bytes:
    """A PNG that claims this size and has next to no pixels."""
    head = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)
    parts = (png_chunk(b"IHDR", head), png_chunk(b"IDAT", zlib.compress(bytes(64))))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts) + png_chunk(b"IEND", b"")


def check_list(root, list_file, meta, encoding: str = "", **more) -> Summary:
    """What the checker finds, in this process."""
    dataset = CheckedList(root, list_file, meta, encoding, **more)
    summary = Summary(dataset)
    for finding in examine_all(dataset, workers=0):
        summary.add(finding)
    summary.finish()
    return summary


def write(root, meta, labels, name: str = "{}.png") -> None:
    """ROOT with these labels, an image for each, and train.lst."""
    folder = meta.folder_under(root)
    for part in ("images", "labels"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    lines = []
    for number, label in enumerate(labels):
        file = "labels/" + name.format(f"frame{number}")
        noise = np.random.default_rng(number).integers(
            0, 256, (*label.shape[:2], 3), dtype=np.uint8
        )
        cv2.imwrite(str(folder / f"images/frame{number}.png"), noise)
        cv2.imwrite(str(folder / file), label)
        lines.append(f"images/frame{number}.png\t{file}\n")
    (root / "train.lst").write_text("".join(lines))


def quick(root, meta, encoding: str = "") -> list[str]:
    """What the quick check of train.lst remarks."""
    dataset = SegmentationDataset(root, "train.lst", meta, encoding, transform=EvalTransform())
    return quick_check(dataset)
