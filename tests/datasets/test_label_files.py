"""What may be a label file: by its content, whatever its name's ending says."""

import io
import json
import zipfile
import zlib

import cv2
import numpy as np
import pytest
from pictures import png_chunk, png_header, saved, tiff
from PIL import Image

from datasets import ColorEncoding, DataError, IdEncoding
from datasets.files import read_image, read_label

IDS, COLORS = IdEncoding({0: 0, 1: 1}), ColorEncoding({(0, 0, 0): 0})
LABEL = np.random.default_rng(0).integers(0, 20, (24, 32), dtype=np.uint8)
RGB = np.random.default_rng(1).integers(0, 256, (24, 32, 3), dtype=np.uint8)


def palette_picture(kind: str) -> bytes:
    picture = Image.fromarray(LABEL)
    picture.putpalette([(7 * value + 90) % 256 for value in range(768)])
    stream = io.BytesIO()
    picture.save(stream, kind)
    return stream.getvalue()


def two_frames(kind: str, **options) -> bytes:
    more = [Image.fromarray(RGB[::-1])]
    return saved(RGB, kind, save_all=True, append_images=more, **options)


LOSSY = {
    "JPEG": (saved(LABEL, "JPEG", quality=100), "a JPEG"),
    "JPEG 2000": (saved(LABEL, "JPEG2000"), "a JPEG 2000"),
    "JPEG 2000 stream": (saved(LABEL, "JPEG2000", no_jp2=True), "a JPEG 2000"),
    "JPEG XL": (b"\xff\x0a" + bytes(99), "a JPEG XL"),
    "JPEG XL in boxes": (b"\x00\x00\x00\x0cJXL \r\n\x87\n" + bytes(99), "a JPEG XL"),
    "AVIF": (saved(LABEL, "AVIF", quality=100), "an AVIF"),
    "HEIC": (b"\x00\x00\x00\x18ftypheic\x00\x00\x00\x00mif1heic" + bytes(99), "a HEIC"),
    "WebP": (saved(RGB, "WEBP"), "a lossy or animated WebP"),
    "WebP with EXIF": (saved(RGB, "WEBP", orientation=1), "a lossy or animated WebP"),
    "animated WebP": (two_frames("WEBP", lossless=True), "a lossy or animated WebP"),
    "GIF": (palette_picture("GIF"), r"a GIF \(whose writers renumber colours\)"),
    "JPEG in TIFF": (saved(RGB, "TIFF", compression="jpeg"), "a TIFF with JPEG compression"),
    "WebP in TIFF": (tiff(LABEL, compression=50001), "a TIFF with compression 50001"),
}


@pytest.mark.parametrize("encoding", [IDS, COLORS], ids=["values", "colours"])
@pytest.mark.parametrize("kind", LOSSY)
def test_formats_that_change_values_are_refused(tmp_path, kind, encoding):
    data, name = LOSSY[kind]
    (tmp_path / "l.png").write_bytes(data)
    words = rf"^l.png is {name}, which does not keep label values; labels must be PNGs of 8 bits$"
    with pytest.raises(DataError, match=words):
        read_label(tmp_path / "l.png", encoding, "l.png")


KEPT = {
    "PNG": saved(LABEL, "PNG"),
    "palette PNG": palette_picture("PNG"),
    "PNG with EXIF": saved(LABEL, "PNG", orientation=6),
    "PNG with a transparent value": saved(LABEL, "PNG", transparency=3),
    "BMP": saved(LABEL, "BMP"),
    "palette BMP": palette_picture("BMP"),
    "PGM": saved(LABEL, "PPM"),
    "TIFF": saved(LABEL, "TIFF"),
    "packed TIFF": saved(LABEL, "TIFF", compression="tiff_adobe_deflate"),
    "palette TIFF": palette_picture("TIFF"),
    "TIFF of OpenCV": cv2.imencode(".tif", LABEL)[1].tobytes(),
}


@pytest.mark.parametrize("kind", KEPT)
def test_other_formats_keep_every_value(tmp_path, kind):
    (tmp_path / "l.png").write_bytes(KEPT[kind])
    label = read_label(tmp_path / "l.png", IDS)
    assert label.dtype == np.uint8 and np.array_equal(label, LABEL)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
def test_no_label_is_turned(tmp_path, kind, orientation):
    options = {"lossless": True} if kind == "WEBP" else {}
    (tmp_path / "l.png").write_bytes(saved(RGB, kind, orientation=orientation, **options))
    assert np.array_equal(read_label(tmp_path / "l.png", COLORS), RGB)
    if kind == "TIFF":
        (tmp_path / "l.png").write_bytes(tiff(LABEL, orientation=orientation))
        assert np.array_equal(read_label(tmp_path / "l.png", IDS), LABEL)


def test_colours_are_kept_with_palette_alpha_or_a_transparent_colour(tmp_path):
    alpha = np.dstack([RGB, LABEL])
    transparent = saved(RGB, "PNG", transparency=tuple(RGB[0, 0].tolist()))
    for data in (saved(RGB, "PNG"), saved(alpha, "PNG"), transparent, saved(RGB, "BMP")):
        (tmp_path / "l.png").write_bytes(data)
        assert np.array_equal(read_label(tmp_path / "l.png", COLORS), RGB)
    (tmp_path / "l.png").write_bytes(palette_picture("PNG"))
    expected = np.array(Image.open(tmp_path / "l.png").convert("RGB"))
    assert np.array_equal(read_label(tmp_path / "l.png", COLORS), expected)


def numpy_file() -> bytes:
    stream = io.BytesIO()
    np.save(stream, LABEL)
    return stream.getvalue()


def zip_file() -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("a.npy", numpy_file())
    return stream.getvalue()


OTHERS = {
    "npy": (numpy_file(), r"a NumPy array \(\.npy\)"),
    "npz": (zip_file(), r"a ZIP archive, as \.npz files are too"),
    "polygons": (json.dumps({"shapes": [{"points": [[1, 2]]}]}, indent=1).encode(), "JSON"),
    "list": (b"[[0, 1], [1, 0]]", "JSON"),
    "SVG": (b"<?xml version='1.0'?>\n<svg width='9'></svg>", "an SVG drawing"),
    "bare SVG": (b"<svg></svg>", "an SVG drawing"),
    "XML": (b"<annotation><size/></annotation>", "an XML file"),
    "page": (b"<!DOCTYPE html>\n<html><body>404</body></html>", "an HTML page"),
    "YOLO": (b"0 0.5 0.5 0.1 0.2\n" * 300, "a text file"),
    "umlauts": ("größe é ".encode() * 700, "a text file"),
    "LFS": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "a Git LFS pointer"),
    "HDF5": (b"\x89HDF\r\n\x1a\n" + bytes(99), "an HDF5 file"),
    "MATLAB": (b"MATLAB 5.0 MAT-file" + bytes(200), r"a MATLAB file \(\.mat\)"),
    "PDF": (b"%PDF-1.4\n" + bytes(99), "a PDF"),
    "gzip": (b"\x1f\x8b\x08" + bytes(99), "a gzip file"),
    "video": (b"\x00\x00\x00\x18ftypisom" + bytes(99), "a video or another media file"),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_what_is_no_picture_is_named(tmp_path, kind, capfd):
    data, name = OTHERS[kind]
    (tmp_path / "a.png").write_bytes(data)
    what = name if kind != "video" else "(a video or another media file)"
    with pytest.raises(DataError, match=rf"^l is {what}.*; photographs are JPEG, PNG") as error:
        read_image(tmp_path / "a.png", "l")
    assert "\n" not in str(error.value)
    words = rf"^l is {what}.*labels must be PNGs of 8 bits(, a value or colour per pixel)?$"
    with pytest.raises(DataError, match=words):
        read_label(tmp_path / "a.png", IDS, "l")
    assert capfd.readouterr().err == ""


def test_unknown_bytes_stay_unknown(tmp_path):
    for data in (bytes(range(256)), b"\x00" * 40, b"\x89PN", b"BM" + bytes(60)):
        (tmp_path / "a.png").write_bytes(data)
        for read in (read_image, lambda path: read_label(path, IDS)):
            with pytest.raises(DataError, match=r"a.png cannot be decoded; it is damaged or not"):
                read(tmp_path / "a.png")


NUMBERS = {
    "float": (tiff(LABEL.astype(np.float32)), "has floating-point values"),
    "double": (tiff(LABEL.astype(np.float64)), "has floating-point values"),
    "float RGB": (tiff(RGB.astype(np.float32)), "has floating-point values"),
    "5 bands": (tiff(np.dstack([RGB, LABEL, LABEL])), "has 5 bands"),
    "12 bands of 16 bits": (tiff(np.dstack([RGB] * 4).astype(np.uint16)), "has 12 bands"),
    "32 bits": (tiff(LABEL.astype(np.uint32)), "has 32 bits per value"),
}


@pytest.mark.parametrize("kind", NUMBERS)
def test_floats_and_many_bands_are_one_sentence(tmp_path, kind, capfd):
    data, words = NUMBERS[kind]
    (tmp_path / "a.tif").write_bytes(data)
    accepted = "a photograph has 1, 3 or 4 bands of 8 or 16 bits"
    with pytest.raises(DataError, match=rf"^a.tif {words}; {accepted}$"):
        read_image(tmp_path / "a.tif", "a.tif")
    for encoding in (IDS, COLORS):
        with pytest.raises(DataError, match=r"^a.tif has .*; (a label|labels)"):
            read_label(tmp_path / "a.tif", encoding, "a.tif")
    assert capfd.readouterr().err == ""


DEEP = {
    "PNG": saved(LABEL.astype(np.uint16), "PNG"),
    "RGB PNG": cv2.imencode(".png", RGB.astype(np.uint16))[1].tobytes(),
    "RGBA PNG": cv2.imencode(".png", np.dstack([RGB, LABEL]).astype(np.uint16))[1].tobytes(),
    "TIFF": tiff(LABEL.astype(np.uint16)),
    "RGB TIFF": cv2.imencode(".tif", RGB.astype(np.uint16))[1].tobytes(),
    "PGM": cv2.imencode(".pgm", LABEL.astype(np.uint16))[1].tobytes(),
    "PPM": cv2.imencode(".ppm", RGB.astype(np.uint16))[1].tobytes(),
}


@pytest.mark.parametrize("kind", DEEP)
def test_labels_of_16_bits_are_refused(tmp_path, kind):
    (tmp_path / "l.png").write_bytes(DEEP[kind])
    for encoding in (IDS, COLORS):
        with pytest.raises(DataError, match=r"^l has 16 bits per value; labels have 8, save it as"):
            read_label(tmp_path / "l.png", encoding, "l")


def test_labels_of_several_pictures_or_scaled_values_are_refused(tmp_path):
    (tmp_path / "l.png").write_bytes(two_frames("PNG"))
    with pytest.raises(DataError, match=r"^l has 2 frames; a label is one picture$"):
        read_label(tmp_path / "l.png", COLORS, "l")
    rows = LABEL.tobytes()
    (tmp_path / "l.pgm").write_bytes(b"P5\n32 24\n20\n" + rows)
    with pytest.raises(DataError, match=r"^l is a PNM whose largest value is not 255; labels"):
        read_label(tmp_path / "l.pgm", IDS, "l")
    (tmp_path / "l.tif").write_bytes(tiff(np.dstack([LABEL, LABEL])))
    with pytest.raises(DataError, match=r"^l has 2 bands; a label has one, or three of a colour"):
        read_label(tmp_path / "l.tif", IDS, "l")


def large_jpeg() -> bytes:
    content = bytearray(saved(RGB, "JPEG"))
    frame = content.find(b"\xff\xc0")
    content[frame + 5 : frame + 9] = b"\xff\xdc\xff\xdc"
    return bytes(content)


def large_tiff() -> bytes:
    data = tiff(np.zeros((1, 40_000), np.uint8))
    place = data.index(b"\x01\x01\x04\x00\x01\x00\x00\x00") + 8  # tag 257, height
    return data[:place] + (30_000).to_bytes(4, "little") + data[place + 4 :]


LARGE = {
    "JPEG": (large_jpeg(), "has 65500x65500 = 4290250000 pixels, more than the 1073741824"),
    "TIFF": (large_tiff(), "has 30000x40000 = .*; cut it into tiles, or raise OPENCV_IO_MAX_IMAGE"),
    "PNG": (png_header(40_000, 30_000), "has 30000x40000 = 1200000000 pixels, more than the 1073"),
    "wide PNG": (png_header(1_000_001, 9), "is 9x1000001 .height x width., and OpenCV reads sides"),
}


@pytest.mark.parametrize("kind", LARGE)
def test_pictures_beyond_the_limit_of_opencv(tmp_path, kind, capfd):
    data, words = LARGE[kind]
    (tmp_path / "a").write_bytes(data)
    with pytest.raises(DataError, match=words):
        read_image(tmp_path / "a", "a")
    if kind != "JPEG":
        with pytest.raises(DataError, match=words):
            read_label(tmp_path / "a", IDS, "a")
    assert capfd.readouterr().err == ""


@pytest.mark.filterwarnings("ignore:::PIL")
@pytest.mark.parametrize("kind", ["PNG", "palette PNG", "BMP", "TIFF", "packed TIFF", "PGM"])
def test_changed_bytes_never_escape(tmp_path, kind, capfd):
    """Damaged label files end as one sentence, or are still a picture of their size."""
    rng, whole = np.random.default_rng(0), KEPT[kind]
    for _ in range(150):
        content = bytearray(whole)
        for place in rng.integers(0, len(whole), 2):
            content[place] = rng.integers(256)
        cut = len(whole) if rng.random() < 0.7 else int(rng.integers(8, len(whole)))
        (tmp_path / "l").write_bytes(bytes(content[:cut]))
        try:
            label = read_label(tmp_path / "l", IDS, "l")
        except DataError as error:
            assert "\n" not in str(error) and str(error).startswith("l ")
        else:
            assert label.ndim == 2 and label.dtype == np.uint8
    if kind != "packed TIFF":  # whose library prints what it finds
        assert capfd.readouterr().err == ""


@pytest.mark.parametrize("late", [False, True])
def test_a_chunk_made_to_do_harm_is_one_sentence_or_none(tmp_path, late):
    text = png_chunk(b"zTXt", b"x\0\0" + zlib.compress(bytes(80 << 20)))
    whole = saved(LABEL, "PNG")
    place = len(whole) - 12 if late else 33
    (tmp_path / "l.png").write_bytes(whole[:place] + text + whole[place:])
    try:
        assert np.array_equal(read_label(tmp_path / "l.png", IDS), LABEL)
    except DataError as error:
        assert "\n" not in str(error)
