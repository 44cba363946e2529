"""Small datasets in the folder trees that the publishers distribute."""

import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np

from datasets import get_meta, read_list
from datasets.cocostuff import CATEGORY_IDS
from datasets.files import REPOSITORY_DATA
from datasets.meta import DatasetMeta

SIZES = ((64, 96), (72, 90), (96, 64))  # height, width
COUNTS = {"train": 4, "val": 2, "test": 2}


def scene(seed: int, classes: int, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """A photograph (RGB) of rectangles and their classes; 255 on the outlines."""
    rng = np.random.default_rng(seed)
    label = np.full(size, rng.integers(classes), np.uint8)
    for _ in range(6):
        corner = tuple(int(rng.integers(side)) for side in size[::-1])
        end = tuple(int(rng.integers(side)) for side in size[::-1])
        cv2.rectangle(label, corner, end, int(rng.integers(classes)), -1)
        cv2.rectangle(label, corner, end, 255, 1)
    table = np.random.default_rng(0).integers(0, 256, (256, 3), dtype=np.uint8)
    noise = rng.integers(0, 20, (*size, 3), dtype=np.uint8)
    return cv2.add(table[label], noise), label


def write_image(path: Path, rgb: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cv2.imencode(path.suffix, rgb[..., ::-1])[1].tobytes())


def write_values(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cv2.imencode(".png", values)[1].tobytes())


def write_palette_png(path: Path, values: np.ndarray, palette: tuple) -> None:
    """An indexed PNG, as Pascal VOC distributes its labels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(palette_png(values, palette))


def palette_png(values: np.ndarray, palette: tuple) -> bytes:
    """The bytes of an indexed PNG: a grayscale one with another colour type and a palette."""
    gray = cv2.imencode(".png", values)[1].tobytes()
    colors = bytes(part for color in palette for part in color).ljust(768, b"\xe0")

    def chunk(kind: bytes, content: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + checksum

    header = gray[16:25] + b"\x03" + gray[26:29]
    return gray[:8] + chunk(b"IHDR", header) + chunk(b"PLTE", colors) + gray[33:]


def mat_file(name: str, values: np.ndarray, field: str = "") -> bytes:
    """A MATLAB 5 file with one uint8 matrix, or with a structure that has it as a field."""

    def element(kind: int, content: bytes) -> bytes:
        return struct.pack("<II", kind, len(content)) + content + b"\0" * (-len(content) % 8)

    def matrix(kind: int, shape: tuple, label: str, content: bytes) -> bytes:
        head = element(6, struct.pack("<II", kind, 0)) + element(5, struct.pack("<2i", *shape))
        return element(14, head + element(1, label.encode()) + content)

    numbers = element(2, values.tobytes(order="F"))
    if field:
        names = struct.pack("<HHi", 5, 4, 32) + element(1, field.encode().ljust(32, b"\0"))
        content = matrix(2, (1, 1), name, names + matrix(9, values.shape, "", numbers))
    else:
        content = matrix(9, values.shape, name, numbers)
    return b"MATLAB 5.0 MAT-file".ljust(124) + struct.pack("<H", 0x0100) + b"IM" + content


def scenes(meta: DatasetMeta, split: str, count: int, sizes=SIZES):
    """`count` scenes that differ between splits."""
    first = {"train": 0, "val": 100, "test": 200, "aug": 300}[split]
    for number in range(count):
        yield scene(first + number, meta.num_classes, sizes[number % len(sizes)])


def cityscapes(root: Path) -> None:
    meta = get_meta("cityscapes")
    for split in COUNTS:
        entries = read_list(REPOSITORY_DATA / f"list/cityscapes/{split}.lst")
        for entry, (image, label) in zip(
            entries, scenes(meta, split, COUNTS[split], SIZES[:1]), strict=False
        ):
            write_image(root / "cityscapes" / entry.image, image)
            if entry.label:
                write_values(root / "cityscapes" / entry.label, meta.decode(label, "labelIds"))


def camvid(root: Path) -> None:
    meta = get_meta("camvid")
    for split in COUNTS:
        entries = read_list(REPOSITORY_DATA / f"list/camvid/{split}.lst")
        for entry, (image, label) in zip(
            entries, scenes(meta, split, COUNTS[split], SIZES[:1]), strict=False
        ):
            write_image(root / "camvid" / entry.image, image)
            write_image(root / "camvid" / entry.label, meta.decode(label, "color"))


def ade20k(root: Path) -> None:
    meta, folder = get_meta("ade20k"), root / "ADEChallengeData2016"
    for split, name in (("train", "training"), ("val", "validation")):
        for number, (image, label) in enumerate(scenes(meta, split, COUNTS[split]), start=1):
            frame = f"ADE_{split}_{number:08d}"
            write_image(folder / f"images/{name}/{frame}.jpg", image)
            write_values(folder / f"annotations/{name}/{frame}.png", meta.decode(label))


def cocostuff164k(root: Path) -> None:
    meta, folder = get_meta("cocostuff164k"), root / "cocostuff164k"
    raw = np.full(256, 255, np.uint8)
    raw[:171] = np.array(CATEGORY_IDS) - 1
    for split in ("train", "val"):
        for number, (image, label) in enumerate(scenes(meta, split, COUNTS[split]), start=9):
            write_image(folder / f"images/{split}2017/{number:012d}.jpg", image)
            write_values(folder / f"annotations/{split}2017/{number:012d}.png", raw[label])


def cocostuff10k(root: Path) -> None:
    meta, folder = get_meta("cocostuff10k"), root / "cocostuff10k"
    (folder / "imageLists").mkdir(parents=True)
    for split in ("train", "test"):
        names = []
        for number, (image, label) in enumerate(scenes(meta, split, COUNTS[split]), start=9):
            names.append(f"COCO_train2014_{split == 'test':06d}{number:06d}")
            write_image(folder / f"images/{names[-1]}.jpg", image)
            content = mat_file("S", meta.decode(label, "categoryIds"))
            (folder / "annotations").mkdir(exist_ok=True)
            (folder / f"annotations/{names[-1]}.mat").write_bytes(content)
        (folder / f"imageLists/{split}.txt").write_text("\n".join(names) + "\n")


def voc2012(root: Path) -> None:
    meta, folder = get_meta("voc2012"), root / "VOCdevkit/VOC2012"
    (folder / "ImageSets/Segmentation").mkdir(parents=True)
    for split in ("train", "val"):
        names = []
        for number, (image, label) in enumerate(scenes(meta, split, COUNTS[split])):
            names.append(f"{2007 + (split == 'val')}_{number:06d}")
            write_image(folder / f"JPEGImages/{names[-1]}.jpg", image)
            write_palette_png(folder / f"SegmentationClass/{names[-1]}.png", label, meta.palette)
        (folder / f"ImageSets/Segmentation/{split}.txt").write_text("\n".join(names) + "\n")


def sbd(root: Path) -> Path:
    """SBD beside a VOC tree: two frames that VOC has photographs of, but no labels."""
    folder = root / "benchmark_RELEASE/dataset"
    (folder / "cls").mkdir(parents=True)
    for number, (image, label) in enumerate(scenes(get_meta("voc2012"), "aug", 2)):
        write_image(root / f"VOCdevkit/VOC2012/JPEGImages/2010_{number:06d}.jpg", image)
        label[label == 255] = 0
        content = mat_file("GTcls", label, "Segmentation")
        (folder / f"cls/2010_{number:06d}.mat").write_bytes(content)
    return folder


BUILDERS: dict[str, Callable[[Path], None]] = {
    "ade20k": ade20k,
    "camvid": camvid,
    "cityscapes": cityscapes,
    "cocostuff10k": cocostuff10k,
    "cocostuff164k": cocostuff164k,
    "voc2012": voc2012,
}
