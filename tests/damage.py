"""A small sound dataset, and functions that damage its second pair."""

import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
from official_trees import palette_png
from pictures import png_header, saved, tiff

from datasets import get_meta

NAMES = ("n1", "n2", "n3", "n4")
LIST = "train.lst"


class Set:
    """ROOT with four sound pairs of 24x32; `spoil` changes the second."""

    def __init__(self, root: Path) -> None:
        self.root, self.folder = root, root / "camvid"
        for part in ("images", "labels"):
            (self.folder / part).mkdir(parents=True)
        rng = np.random.default_rng(0)
        for name in NAMES:
            self.write_pair(f"images/{name}.jpg", f"labels/{name}.png", rng)
        self.write_pair("images/v.jpg", "labels/v.png", rng)
        self.lines = [f"images/{name}.jpg\tlabels/{name}.png" for name in NAMES]
        (root / "val.lst").write_text("images/v.jpg\tlabels/v.png\n")

    def write_pair(self, image: str, label: str, rng: np.random.Generator) -> None:
        values = rng.integers(0, 12, (3, 4), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
        noise = rng.integers(0, 256, (24, 32, 3), dtype=np.uint8)
        self.write(image, cv2.imencode(Path(image).suffix, noise)[1].tobytes())
        self.write(label, cv2.imencode(".png", values)[1].tobytes())

    def path(self, file: str) -> Path:
        return self.folder / file

    def write(self, file: str, content: bytes) -> None:
        self.path(file).write_bytes(content)

    def label(self) -> np.ndarray:
        return cv2.imdecode(
            np.frombuffer(self.path("labels/n2.png").read_bytes(), np.uint8), cv2.IMREAD_UNCHANGED
        )

    def write_label(self, values: np.ndarray, kind: str = ".png") -> None:
        self.write("labels/n2.png", cv2.imencode(kind, values)[1].tobytes())

    def write_list(self, ending: str = "\n", before: bytes = b"") -> None:
        text = "".join(line + ending for line in self.lines)
        (self.root / LIST).write_bytes(before + text.encode())

    def rename(self, image: str, label: str) -> None:
        """Give the second pair other names, in the list too."""
        self.path("images/n2.jpg").rename(self.path(image))
        self.path("labels/n2.png").rename(self.path(label))
        self.lines[1] = f"{image}\t{label}"


def missing(s: Set):
    s.path("labels/n2.png").unlink()


def swapped_columns(s: Set):
    s.lines[1] = "labels/n2.png\timages/n2.jpg"


def swapped_labels(s: Set):
    s.lines[1], s.lines[2] = "images/n2.jpg\tlabels/n3.png", "images/n3.jpg\tlabels/n2.png"


def wrong_size(s: Set):
    s.write_label(s.label()[:16])


def bits_16(s: Set):
    s.write_label(s.label().astype(np.uint16))


def palette(s: Set):
    s.write("labels/n2.png", palette_png(s.label(), get_meta("voc2012").palette))


def alpha(s: Set):
    gray = s.label()
    s.write_label(cv2.merge([gray, gray, gray, np.full_like(gray, 255)]))


def gray_alpha(s: Set):
    label = s.label()
    rows = np.stack([label, np.full_like(label, 255)], -1).reshape(len(label), -1)
    raw = np.hstack([np.zeros((len(rows), 1), np.uint8), rows]).tobytes()

    def chunk(kind: bytes, content: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + checksum

    head = struct.pack(">IIBBBBB", label.shape[1], label.shape[0], 8, 4, 0, 0, 0)
    parts = (chunk(b"IHDR", head), chunk(b"IDAT", zlib.compress(raw)), chunk(b"IEND", b""))
    s.write("labels/n2.png", b"\x89PNG\r\n\x1a\n" + b"".join(parts))


def image_alpha(s: Set):
    noise = np.random.default_rng(1).integers(0, 256, (24, 32, 4), dtype=np.uint8)
    noise[..., 3] = 255
    s.write("images/n2.png", cv2.imencode(".png", noise)[1].tobytes())
    s.lines[1] = "images/n2.png\tlabels/n2.png"


def jpeg(s: Set):
    s.write_label(s.label(), ".jpg")


def avif(s: Set):
    s.write("labels/n2.png", saved(s.label(), "AVIF"))


def lossy_webp(s: Set):
    s.write("labels/n2.png", saved(cv2.merge([s.label()] * 3), "WEBP"))


def polygons(s: Set):
    s.write("labels/n2.png", b'{"shapes": []}')


def array(s: Set):
    s.write("labels/n2.png", b"\x93NUMPY\x01\x00" + bytes(99))


def float_label(s: Set):
    s.write("labels/n2.png", tiff(s.label().astype(np.float32)))


def float_image(s: Set):
    s.write("images/n2.jpg", tiff(np.zeros((24, 32, 3), np.float32)))


def many_bands(s: Set):
    s.write("images/n2.jpg", tiff(np.zeros((24, 32, 7), np.uint16)))


def gigapixel(s: Set):
    s.write("images/n2.jpg", png_header(40_000, 40_000))


def out_of_range(s: Set):
    s.write_label(np.where(s.label() == s.label()[0, 0], 33, s.label()).astype(np.uint8))


def empty_list(s: Set):
    s.lines = []


def duplicate(s: Set):
    s.lines.insert(2, s.lines[1])


def spaces(s: Set):
    s.rename("images/my picture 2.jpg", "labels/my label 2.png")


def backslashes(s: Set):
    s.lines = [line.replace("/", "\\") for line in s.lines]


def spaces_without_tab(s: Set):
    spaces(s)
    s.lines[1] = s.lines[1].replace("\t", " ")


def unicode_names(s: Set):
    s.rename("images/straße_日本.jpg", "labels/straße_日本.png")


def unicode_other_form(s: Set):
    s.rename("images/caf\u00e9.jpg", "labels/caf\u00e9.png")
    s.lines[1] = s.lines[1].replace("\u00e9", "e\u0301")


def zero_bytes(s: Set):
    s.write("images/n2.jpg", b"")


def truncated(s: Set):
    s.write("images/n2.jpg", s.path("images/n2.jpg").read_bytes()[:-300])


def truncated_label(s: Set):
    s.write("labels/n2.png", s.path("labels/n2.png").read_bytes()[:-20])


def symlink_loop(s: Set):
    s.path("labels/n2.png").unlink()
    s.path("labels/n2.png").symlink_to("n2.png")


def dangling_link(s: Set):
    s.path("labels/n2.png").unlink()
    s.path("labels/n2.png").symlink_to("elsewhere.png")


def folder(s: Set):
    s.path("labels/n2.png").unlink()
    s.path("labels/n2.png").mkdir()


def other_case(s: Set):
    s.path("images/n2.jpg").rename(s.path("images/n2.JPG"))


def other_case_in_list(s: Set):
    s.rename("images/n2.JPG", "labels/n2.PNG")


def outside(s: Set):
    s.lines[1] = "../elsewhere/n2.jpg\tlabels/n2.png"


def outside_absolute(s: Set):
    s.lines[1] = f"{s.folder}/images/n2.jpg\tlabels/n2.png"


def unchanged(s: Set):
    pass
