"""What is odd about a label file, though it can be read."""

import io

import numpy as np
from PIL import Image

from ..files import Header, read_header
from ..files.headers import ERRORS
from ..meta import DatasetMeta, IdEncoding, LabelEncoding
from .photographs import Oddity
from .smooth import smoothing


def label_oddities(
    data: bytes,
    values: np.ndarray | None,
    ignored: np.ndarray | None,
    meta: DatasetMeta,
    encoding: LabelEncoding,
) -> list[Oddity]:
    """What a label file carries that is not applied or not meant, as ends of sentences.

    Args:
        data: the whole file.
        values: what `read_label` makes of it; None if it cannot.
        ignored: (H, W) bool, where there is no class; None if that is not known.
    """
    header, found = read_header(data), []
    if header and header.orientation != 1:
        text = (
            f"carries EXIF orientation {header.orientation}, which viewers apply; labels are read "
            "as stored: store it upright, without this tag"
        )
        found.append(Oddity("label orientation", text))
    if header and isinstance(encoding, IdEncoding) and values is not None:
        found += _palette_order(data, header, values, meta, encoding)
    if values is not None and ignored is not None:
        smooth = smoothing(values, ignored, encoding)
        found += [Oddity("smoothed", smooth)] if smooth else []
    return found


def _palette_order(
    data: bytes, header: Header, values: np.ndarray, meta: DatasetMeta, encoding: IdEncoding
) -> list[Oddity]:
    """Whether the file's palette shows values in the colours of other classes."""
    if header.mode not in ("P", ""):
        return []
    colors = _palette(data)
    classes: dict[tuple[int, ...], set[int]] = {}
    for index, color in enumerate(meta.palette):
        classes.setdefault(tuple(color), set()).add(index)
    present = [value for value in np.unique(values).tolist() if value in encoding.ids]
    shown = {value: classes.get(colors.get(value, ())) for value in present}
    other = [value for value in present if shown[value] and encoding.ids[value] not in shown[value]]
    if len(present) < 2 or not all(shown.values()) or not other:
        return []
    value = other[0]
    read, drawn = (meta.class_names[i] for i in (encoding.ids[value], min(shown[value])))
    text = (
        f"has the colours of the classes in another order in its palette: value {value} is read as "
        f"{read} and shown in the colour of {drawn}; if the colours are right, labels are to be "
        f"read by them{f' (encoding: color in {meta.origin})' if meta.origin else ''}"
    )
    return [Oddity("palette", text)]


def _palette(data: bytes) -> dict[int, tuple[int, ...]]:
    """Value -> RGB of a picture with a palette; else empty."""
    try:
        with Image.open(io.BytesIO(data)) as picture:
            flat = picture.getpalette("RGB") if picture.mode == "P" else None
    except ERRORS:
        return {}
    flat = flat or []
    return {index: tuple(flat[3 * index : 3 * index + 3]) for index in range(len(flat) // 3)}
