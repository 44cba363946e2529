"""What reading a photograph turns or drops: the rule, and that the checker names it."""

import cv2
import numpy as np
import pytest
from pictures import check_list, png_chunk, saved, tiff
from PIL import Image, ImageOps

from datasets import DataError, get_meta, quick_check
from datasets.checking.photographs import photograph_oddities
from datasets.files import read_header, read_image

TURNED = ("JPEG", "PNG", "WEBP", "TIFF")
KINDS = (*TURNED, "AVIF")


def picture(height: int = 32, width: int = 48) -> np.ndarray:
    """Four corners of different colours, smooth enough for every format."""
    corners = np.array([[(220, 30, 30), (30, 220, 30)], [(30, 30, 220), (220, 220, 30)]], np.uint8)
    return corners.repeat(height // 2, 0).repeat(width // 2, 1)


def options(kind: str) -> dict:
    return {"lossless": True} if kind == "WEBP" else {"quality": 98} if kind == "JPEG" else {}


def close(one: np.ndarray, two: np.ndarray) -> bool:
    if one.shape != two.shape:
        return False
    return float(np.abs(one.astype(int) - two.astype(int)).mean()) < 9


@pytest.fixture
def put(folder):
    """Replaces a file of the first pair; returns what the checker finds."""

    def replace(data: bytes, part: str = "images"):
        (folder / f"camvid/{part}/a.png").write_bytes(data)
        return check_list(folder, "list/train.lst", get_meta("camvid"), "index")

    return replace


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", TURNED)
def test_photographs_are_read_upright(tmp_path, kind, orientation):
    stored = picture()
    data = saved(stored, kind, orientation=orientation, **options(kind))
    (tmp_path / "a").write_bytes(data)
    exif = Image.Exif()
    exif[274] = orientation
    with_tag = Image.fromarray(stored)
    with_tag.info["exif"] = exif.tobytes()
    upright = np.asarray(ImageOps.exif_transpose(with_tag))
    assert close(read_image(tmp_path / "a"), upright)


@pytest.mark.parametrize("orientation", range(2, 9))
@pytest.mark.parametrize("kind", KINDS)
def test_every_orientation_is_named_in_every_container(put, folder, kind, orientation):
    size = (20, 20) if orientation > 4 else (20, 30)  # sizes that stay equal show nothing
    cv2.imwrite(str(folder / "camvid/labels/a.png"), np.arange(size[0] * size[1], dtype=np.uint16)
                .reshape(size).astype(np.uint8) % 11)  # fmt: skip
    summary = put(saved(picture(*size), kind, orientation=orientation, **options(kind)))
    assert summary.problems == []
    (found,) = [text for text in summary.suspicions if "orientation" in text]
    start = f"{folder}/list/train.lst:1: images/a.png carries "
    if kind == "AVIF":
        assert found == (
            f"{start}orientation {orientation}, which viewers apply, but AVIF files are read as "
            "stored: store it upright, and its label too"
        )
    else:
        assert found.startswith(f"{start}EXIF orientation {orientation} and is read upright, ")
        assert found.endswith(
            "; labels are read as stored and must fit the upright picture: store both upright"
        )
    assert next(iter(summary.suspects)) == 0


@pytest.mark.parametrize("kind", KINDS)
def test_upright_photographs_are_not_named(put, kind):
    for orientation in (0, 1):
        data = saved(picture(20, 30), kind, orientation=orientation, **options(kind))
        assert put(data).suspicions == []


def late_exif() -> bytes:
    """A PNG whose EXIF stands behind its pixels."""
    exif = Image.Exif()
    exif[274] = 3
    plain = saved(picture(20, 30), "PNG")
    return plain[:-12] + png_chunk(b"eXIf", exif.tobytes()[6:]) + plain[-12:]


def xmp(kind: str) -> bytes:
    """An orientation in XMP alone."""
    text = b'<x:xmpmeta xmlns:x="adobe:ns:meta/" tiff:Orientation="3"></x:xmpmeta>'
    plain = saved(picture(20, 30), kind, **options(kind))
    if kind == "JPEG":
        content = b"http://ns.adobe.com/xap/1.0/\0" + text
        return plain[:2] + b"\xff\xe1" + (len(content) + 2).to_bytes(2, "big") + content + plain[2:]
    chunk = png_chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + text)
    return plain[:33] + chunk + plain[33:]


@pytest.mark.parametrize(
    "data", [late_exif(), xmp("JPEG"), xmp("PNG")], ids=["late EXIF", "JPEG XMP", "PNG XMP"]
)
def test_orientations_in_odd_places_are_named(put, folder, data):
    (found,) = put(data).suspicions
    turned = not close(read_image(folder / "camvid/images/a.png"), picture(20, 30))
    assert "orientation 3" in found
    assert ("is read upright" in found) == turned
    assert ("are read as stored: store it upright" in found) == (not turned)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_labels_that_carry_an_orientation_are_named(put, folder, kind):
    values = np.random.default_rng(0).integers(0, 12, (20, 30), dtype=np.uint8)
    for orientation in (3, 6):
        data = saved(values, kind, orientation=orientation)
        summary = put(data, "labels")
        assert summary.problems == []
        assert summary.suspicions == [
            f"{folder}/list/train.lst:1: labels/a.png carries EXIF orientation {orientation}, "
            "which viewers apply; labels are read as stored: store it upright, without this tag"
        ]


def test_sizes_that_differ_name_the_orientation_as_their_cause(put, folder, open_dataset):
    stored = saved(picture(20, 30), "JPEG", orientation=6)
    words = (
        "labels/a.png is 20x30 but its image images/a.png is 30x20 (height x width); they must be "
        "equal; images/a.png carries EXIF orientation 6: photographs are turned upright, labels "
        "are read as stored and must be stored upright"
    )
    assert f"{folder}/list/train.lst:1: {words}" in put(stored).problems
    with pytest.raises(DataError) as error:
        quick_check(open_dataset())
    end = "; tools/check_data.py finds all at once"
    assert str(error.value) == f"{folder}/list/train.lst:1: {words}{end}"
    put(saved(picture(30, 20), "PNG"))
    label = saved(np.zeros((20, 30), np.uint8), "PNG", orientation=8)
    assert "; labels/a.png carries EXIF orientation 8: " in put(label, "labels").problems[0]
    plain = put(saved(np.zeros((20, 30), np.uint8), "PNG"), "labels")
    assert plain.problems[0].endswith("they must be equal")


# depth and bands


def deep(largest: int, bands: int = 1) -> np.ndarray:
    """16-bit samples up to `largest`."""
    ramp = np.linspace(0, largest, 600).round().astype(np.uint16).reshape(20, 30)
    return np.dstack([ramp] * bands) if bands > 1 else ramp


def opencv(array: np.ndarray, suffix: str) -> bytes:
    return cv2.imencode(suffix, array)[1].tobytes()


@pytest.mark.parametrize(("used", "levels"), [(10, 4), (12, 16), (14, 64), (15, 128)])
@pytest.mark.parametrize("suffix", [".png", ".tif", ".pgm"])
def test_samples_that_fill_16_bits_badly_are_named(put, folder, suffix, used, levels):
    summary = put(opencv(deep(2**used - 1), suffix))
    assert len(np.unique(read_image(folder / "camvid/images/a.png"))) <= levels + 1
    assert [text for text in summary.suspicions if "bits" in text] == [
        f"{folder}/list/train.lst:1: images/a.png has 1 band of 16 bits, of which {used} are used; "
        f"the upper 8 are read, which keeps {levels} grey levels: scale it to 0..255 and save it "
        "as 8 bits"
    ]


@pytest.mark.parametrize("suffix", [".png", ".tif", ".ppm"])
def test_depth_is_seen_in_colour_too(put, suffix):
    (found,) = [t for t in put(opencv(deep(4095, 3), suffix)).suspicions if "bits" in t]
    assert "images/a.png has 3 bands of 16 bits, of which 12 are used" in found


STRAY = {
    "one": [65535],
    "several": [65535] * 4,
    "of several values": [65535, 40000, 52000, 61234],
    "a stamp in 15 bits": [32767 + 1, 65535],
}


@pytest.mark.parametrize("kind", STRAY)
@pytest.mark.parametrize(("used", "levels"), [(10, 4), (12, 16), (14, 64)])
@pytest.mark.parametrize(("suffix", "bands"), [(".png", 1), (".tif", 3), (".pgm", 1)])
def test_stray_bright_pixels_hide_no_lack_of_depth(put, suffix, bands, used, levels, kind):
    picture = deep(2**used - 1, bands)
    for number, value in enumerate(STRAY[kind]):
        picture[3 * number, 7] = value
    (found,) = [text for text in put(opencv(picture, suffix)).suspicions if "bits" in text]
    assert f"of 16 bits, of which {used} are used; the upper 8" in found
    assert f"which keeps {levels} grey levels" in found


@pytest.mark.parametrize("shape", [(20, 30), (200, 300), (200, 300, 3)])
def test_dark_pictures_with_lights_use_their_depth(shape):
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 4096, shape).astype(np.uint16)
    lights = rng.choice(picture.size, max(40, picture.size // 1500), replace=False)
    picture.flat[lights] = np.linspace(8000, 65535, len(lights)).astype(np.uint16)
    data = opencv(picture, ".png")
    assert photograph_oddities(data, read_header(data)) == []


def test_the_smallest_pictures_are_judged_too():
    for value, odd in ((65535, False), (4095, True)):
        data = opencv(np.full((1, 1), value, np.uint16), ".png")
        assert bool(photograph_oddities(data, read_header(data))) == odd


@pytest.mark.parametrize("data", [opencv(deep(65535), ".png"), tiff(deep(65535, 3))])
def test_full_16_bits_are_a_note(put, folder, data):
    summary = put(data)
    assert not any("bits" in text for text in summary.suspicions)
    assert summary.notes[0] == (
        f"{folder}/list/train.lst: 1 image with more than 8 bits per value, of which the upper 8 "
        "are read"
    )


def bands(number: int, last: int | None) -> np.ndarray:
    noise = np.random.default_rng(0).integers(0, 256, (20, 30, number), dtype=np.uint8)
    if last is not None:
        noise[..., -1] = last
    return noise


DROPPED = {
    "RGBA PNG": (saved(bands(4, None), "PNG"), "4 bands of 8 bits; the fourth"),
    "clear RGBA PNG": (saved(bands(4, 0), "PNG"), "4 bands of 8 bits; the fourth"),
    "RGBA WebP": (saved(bands(4, None), "WEBP"), "4 bands of 8 bits; the fourth"),
    "RGBA TIFF": (saved(bands(4, None), "TIFF"), "4 bands of 8 bits; the fourth"),
    "infrared TIFF": (tiff(bands(4, None)), "4 bands of 8 bits; the fourth"),
    "infrared 16-bit TIFF": (
        tiff(np.dstack([deep(65535, 3), deep(4000)])), "4 bands of 16 bits; the fourth",
    ),
    "gray and alpha PNG": (saved(bands(2, None), "PNG"), "2 bands of 8 bits; the second"),
    "2-band TIFF": (tiff(bands(2, None)), "2 bands of 8 bits; the second"),
    "2-band 16-bit TIFF": (tiff(deep(65535, 2)), "2 bands of 16 bits; the second"),
    "RGBA 16-bit PNG": (
        opencv(np.dstack([deep(65535, 3), deep(4000)]), ".png"), "4 bands of 16 bits; the fourth",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", DROPPED)
def test_bands_that_are_dropped_are_named(put, folder, kind):
    data, words = DROPPED[kind]
    summary = put(data)
    assert summary.problems == []
    assert [text for text in summary.suspicions if "band" in text] == [
        f"{folder}/list/train.lst:1: images/a.png has {words} one (alpha or infrared) is dropped: "
        "networks here see three"
    ]


def test_an_opaque_alpha_says_nothing(put):
    for data in (
        saved(bands(4, 255), "PNG"),
        saved(bands(4, 255), "WEBP"),
        saved(bands(2, 255), "PNG"),
        saved(bands(3, None), "PNG"),
        saved(bands(3, None)[..., 0], "PNG"),
    ):
        assert put(data).suspicions == []
    cmyk = Image.fromarray(bands(4, None), "RGBA").convert("RGB").convert("CMYK")
    assert put(saved(np.asarray(cmyk.convert("RGB")), "JPEG")).suspicions == []


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_headers_tell_depth_and_bands():
    found = {
        "L": read_header(saved(deep(255).astype(np.uint8), "PNG"))[:5],
        "16": read_header(opencv(deep(4095, 3), ".png"))[:5],
        "tiff": read_header(tiff(np.zeros((4, 6, 7), np.float32)))[:6],
    }
    assert found == {
        "L": ("PNG", (20, 30), "L", 1, 8),
        "16": ("PNG", (20, 30), "RGB", 3, 16),
        "tiff": ("TIFF", (4, 6), "", 7, 32, True),
    }
    assert read_header(b"text") is None and read_header(b"II*\0\xff\xff\xff\xff") is None
