import struct
import zlib

import cv2
import numpy as np
import pytest
from pictures import check_list, tiff

from datasets import ColorEncoding, DataError, IdEncoding, get_meta, quick_check
from datasets.files import read_image, read_label

IDS, COLORS = IdEncoding({0: 0, 1: 1}), ColorEncoding({(0, 0, 0): 0})
LABEL = np.random.default_rng(0).integers(0, 2, (9, 13), dtype=np.uint8)


def write_png(path, rows: np.ndarray, depth: int, kind: int) -> None:
    """A PNG of `depth` bits per pixel; kind 0 = gray, 3 = palette (colours far from indices)."""
    bits = np.unpackbits(rows[..., None], axis=2, bitorder="big")[..., 8 - depth :]
    packed = np.packbits(bits.reshape(rows.shape[0], -1), axis=1)
    scanlines = b"".join(b"\x00" + row.tobytes() for row in packed)

    def chunk(name: bytes, content: bytes) -> bytes:
        crc = zlib.crc32(name + content)
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", crc)

    header = struct.pack(">IIBBBBB", rows.shape[1], rows.shape[0], depth, kind, 0, 0, 0)
    parts = [b"\x89PNG\r\n\x1a\n", chunk(b"IHDR", header)]
    if kind == 3:
        parts.append(chunk(b"PLTE", bytes((255 - i) % 256 for i in range(3 * 2**depth))))
    parts += [chunk(b"IDAT", zlib.compress(scanlines)), chunk(b"IEND", b"")]
    path.write_bytes(b"".join(parts))


def encoded(array: np.ndarray, suffix: str = ".png") -> bytes:
    return cv2.imencode(suffix, array)[1].tobytes()


def test_images_are_rgb(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(encoded(np.full((4, 5, 3), (30, 20, 10), np.uint8)))  # cv2 writes BGR
    assert read_image(path)[0, 0].tolist() == [10, 20, 30]
    path.write_bytes(encoded(np.full((4, 5), 7, np.uint8)))
    assert read_image(path).shape == (4, 5, 3)


def test_colour_labels_are_rgb_with_or_without_alpha(tmp_path):
    path = tmp_path / "a.png"
    for color in ((30, 20, 10), (30, 20, 10, 0)):
        path.write_bytes(encoded(np.full((4, 5, len(color)), color, np.uint8)))
        label = read_label(path, COLORS)
        assert label.shape == (4, 5, 3) and label[0, 0].tolist() == [10, 20, 30]


@pytest.mark.parametrize("kind", [0, 3], ids=["gray", "palette"])
@pytest.mark.parametrize("depth", [1, 2, 4, 8])
def test_label_values_are_kept_at_every_bit_depth(tmp_path, depth, kind):
    values = np.random.default_rng(depth).integers(0, 2**depth, (7, 11), dtype=np.uint8)
    write_png(tmp_path / "a.png", values, depth, kind)
    assert np.array_equal(read_label(tmp_path / "a.png", IDS), values)


def test_a_palette_gives_colours_where_colours_are_expected(tmp_path):
    write_png(tmp_path / "a.png", np.zeros((3, 3), np.uint8), 8, 3)
    assert read_label(tmp_path / "a.png", COLORS)[0, 0].tolist() == [255, 254, 253]


def damaged() -> dict[str, tuple[bytes, str]]:
    png, jpeg = encoded(LABEL), encoded(LABEL, ".jpg")
    flipped = bytearray(png)
    flipped[-20] ^= 0xFF
    thumbnail = b"\xff\xe1" + struct.pack(">H", 6) + b"\xff\xd9\x00\x00"
    return {
        "empty": (b"", r"is empty \(0 bytes\)"),
        "cut PNG": (png[: len(png) // 2], "is a truncated PNG"),
        "PNG without its end": (png[:-12], "is a truncated PNG"),
        "PNG cut in the last byte": (png[:-1], "is a truncated PNG"),
        "cut PNG header": (png[:20], "is a truncated PNG"),
        "changed PNG": (bytes(flipped), "is a damaged PNG"),
        "cut JPEG": (jpeg[:-40], "is a truncated JPEG"),
        "cut JPEG with a thumbnail": (jpeg[:2] + thumbnail + jpeg[2:-40], "is a truncated JPEG"),
        "text": (
            b"not an image at all, but long enough to be one",
            "is a text file; photographs are",
        ),
    }


@pytest.mark.parametrize("damage", damaged())
def test_broken_files_are_named(tmp_path, damage, capfd):
    data, words = damaged()[damage]
    (tmp_path / "a.png").write_bytes(data)
    with pytest.raises(DataError, match=f"^images/a.png {words}"):
        read_image(tmp_path / "a.png", "images/a.png")
    assert capfd.readouterr().err == ""


def test_missing_files_and_folders_are_named(tmp_path):
    with pytest.raises(DataError, match=r"^a.png does not exist$"):
        read_image(tmp_path / "a.png", "a.png")
    (tmp_path / "a.png").mkdir()
    with pytest.raises(DataError, match=r"^a.png is a folder, not a file$"):
        read_image(tmp_path / "a.png", "a.png")


def test_a_sound_jpeg_with_a_thumbnail_and_a_tail_is_read(tmp_path):
    jpeg = encoded(np.zeros((16, 16, 3), np.uint8), ".jpg")
    thumbnail = b"\xff\xe1" + struct.pack(">H", 6) + b"\xff\xd9\x00\x00"
    (tmp_path / "a.jpg").write_bytes(jpeg[:2] + thumbnail + jpeg[2:] + b"\x00" * 9)
    assert read_image(tmp_path / "a.jpg").shape == (16, 16, 3)


@pytest.mark.parametrize(
    ("label", "suffix", "encoding", "words"),
    [
        (LABEL, ".jpg", IDS, "l.png is a JPEG, which does not keep label values"),
        (LABEL, ".jpg", COLORS, "l.png is a JPEG"),
        (LABEL.astype(np.uint16), ".png", IDS, "l.png has 16 bits per value"),
        (cv2.merge([LABEL] * 3), ".png", IDS, "l.png has 3 channels .* is expected; see LABELS"),
        (cv2.merge([LABEL] * 4), ".png", IDS, "l.png has 4 channels .* is expected; see LABELS"),
        (LABEL, ".png", COLORS, "l.png has one channel .* are expected; see LABELS"),
    ],
    ids=["JPEG", "colour JPEG", "16 bits", "RGB", "RGBA", "values for colours"],
)
def test_labels_of_another_kind_are_refused(tmp_path, label, suffix, encoding, words):
    (tmp_path / "l.png").write_bytes(encoded(label, suffix))
    with pytest.raises(DataError, match=words):
        read_label(tmp_path / "l.png", encoding, "l.png", "; see LABELS")


# numbers that photographs do not have


def numbers(kind: type, bands: int = 3) -> np.ndarray:
    noise = np.random.default_rng(0).random((20, 30, bands)) * 100
    return noise.astype(kind)[..., 0] if bands == 1 else noise.astype(kind)


REAL, SIGNED = "has floating-point values; a photograph has", "has values of the type int"
NUMBERS = {
    "PFM": (encoded(numbers(np.float32), ".pfm"), REAL),
    "gray PFM": (encoded(numbers(np.float32, 1), ".pfm"), REAL),
    "Radiance": (encoded(numbers(np.float32), ".hdr"), REAL),
    "EXR": (b"v/1\x01\x02\0\0\0" + bytes(64), "is an OpenEXR file; photographs are JPEG"),
    "half TIFF": (tiff(numbers(np.float16)), REAL),
    "float TIFF": (tiff(numbers(np.float32)), REAL),
    "double TIFF": (tiff(numbers(np.float64, 1)), REAL),
    "signed 8-bit TIFF": (tiff(numbers(np.int8)), SIGNED),
    "signed 16-bit TIFF": (tiff(numbers(np.int16, 1)), SIGNED),
    "32-bit TIFF": (tiff(numbers(np.uint32)), "has 32 bits per value; a photograph has"),
}


@pytest.mark.parametrize("kind", NUMBERS)
def test_other_numbers_than_those_of_photographs_are_refused(tmp_path, folder, open_dataset, kind):
    data, words = NUMBERS[kind]
    (folder / "camvid/images/a.png").write_bytes(data)
    with pytest.raises(DataError, match=f"^a.png {words}"):
        read_image(folder / "camvid/images/a.png", "a.png")
    with pytest.raises(DataError, match=f"train.lst:1: images/a.png {words}"):
        quick_check(open_dataset())
    with pytest.raises(DataError, match=f"train.lst:1: images/a.png {words}"):
        open_dataset()[0]
    (problem,) = check_list(folder, "list/train.lst", get_meta("camvid"), "index").problems
    assert f"train.lst:1: images/a.png {words}" in problem


def test_an_exr_that_opencv_decodes_is_refused_by_its_numbers(tmp_path, monkeypatch):
    monkeypatch.setattr(cv2, "imdecode", lambda data, flags: numbers(np.float32))
    (tmp_path / "a.exr").write_bytes(NUMBERS["EXR"][0])
    with pytest.raises(DataError, match=f"^a.exr {REAL}"):
        read_image(tmp_path / "a.exr", "a.exr")


@pytest.mark.parametrize(
    ("suffix", "kind"),
    [
        *((suffix, np.uint8) for suffix in (".ppm", ".pam", ".ras", ".tif", ".png", ".avif")),
        *((suffix, np.uint16) for suffix in (".ppm", ".tif", ".png")),  # OpenCV writes no others
    ],
)
def test_numbers_of_photographs_are_read_in_every_container(tmp_path, suffix, kind):
    flat = np.full((20, 30, 3), 120, np.uint8)
    data = encoded(flat if kind == np.uint8 else flat.astype(kind) << 8, suffix)
    (tmp_path / "a").write_bytes(data)
    picture = read_image(tmp_path / "a")
    assert picture.dtype == np.uint8 and np.abs(picture.astype(int) - 120).max() < 8
