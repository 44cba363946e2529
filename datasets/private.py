"""A dataset of one's own: class names, colours and label encoding in a yaml file.

    class_names: [background, leaf, stem]     # in the order of the network's outputs
    palette: [[0, 0, 0], [60, 160, 60], [150, 110, 60]]     # for pictures; may be left out
    encoding: index        # label values 0, 1, 2 (default); or color: RGB labels in the palette's
                           # colours; or values of your own: {0: background, 85: leaf, 170: stem}
    ignored: [255]         # label values without a class; "others": all that encoding leaves out

docs/your_own_data.md goes through it.
"""

import difflib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import yaml

from .meta import ColorEncoding, DatasetMeta, IdEncoding, LabelEncoding

KEYS = ("class_names", "palette", "encoding", "ignored", "ignore_label", "class_weights")


def read_meta(path: str | Path) -> DatasetMeta:
    """The dataset that a yaml file declares, called by the file's name without .yaml.

    Its folder is DATASET.ROOT/<name> if there is one, else DATASET.ROOT itself.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not yaml, an unknown key, or values that are not as the key asks.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"DATASET.DATASET {path} does not exist")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid yaml: {' '.join(str(error).split())}") from None
    try:
        return _meta(path.stem, content)
    except ValueError as error:
        raise ValueError(f"{path}: {str(error).removeprefix(f'{path.stem}: ')}") from None


def _meta(name: str, content: Any) -> DatasetMeta:
    if not isinstance(content, Mapping):
        raise ValueError("a dataset is declared as KEY: value, class_names at least")
    for key in content:
        if key not in KEYS:
            near = difflib.get_close_matches(str(key), KEYS, n=1)
            hint = f"did you mean {near[0]}?" if near else f"accepted: {', '.join(KEYS)}"
            raise ValueError(f"unknown key {key}; {hint}")
    if not re.fullmatch(r"[\w.-]+", name):
        raise ValueError(
            "the file's name names the dataset and its runs; accepted: letters, digits, _ . -"
        )
    names = _class_names(content.get("class_names"))
    if len(names) == 1:
        raise ValueError(
            f"one class, {names[0]}; a mask of one thing has two: background and {names[0]}"
        )
    palette = _palette(content.get("palette"), len(names))
    weights = content.get("class_weights")
    if weights is not None and not (
        isinstance(weights, list) and all(_is_number(weight) and weight >= 0 for weight in weights)
    ):
        raise ValueError(f"class_weights is {weights!r}; accepted: a number for each class")
    return DatasetMeta(
        name,
        names,
        palette,
        _encodings(content, names, palette),
        ignore_label=_byte(content.get("ignore_label", 255), "ignore_label"),
        class_weights=None if weights is None else tuple(map(float, weights)),
        folders=(name, "."),
    )


def _class_names(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not value:
        raise ValueError(f"class_names is {value!r}; accepted: a list such as [background, leaf]")
    for name in value:
        if not isinstance(name, str) or not name.strip():
            raise ValueError(f"the class name {name!r} is not text; put it in quotes")
    return tuple(value)


def _palette(value: Any, count: int) -> tuple[tuple[int, int, int], ...]:
    if value is None:
        return distinct_colors(count)
    if not isinstance(value, list) or not all(
        isinstance(color, list) and all(type(part) is int for part in color) for color in value
    ):
        raise ValueError(f"palette is {value!r}; accepted: a colour [red, green, blue] per class")
    return tuple(tuple(color) for color in value)


def distinct_colors(count: int) -> tuple[tuple[int, int, int], ...]:
    """Black and then `count` - 1 colours far apart in hue."""
    step = 0.618034  # the golden ratio spreads any number of hues evenly
    hsv = [(int(256 * (index * step % 1)), 200, 255 - 60 * (index % 3)) for index in range(count)]
    colors = cv2.cvtColor(np.array([hsv], np.uint8), cv2.COLOR_HSV2RGB_FULL)[0].tolist()
    return ((0, 0, 0), *(tuple(color) for color in colors[1:]))


def _encodings(
    content: Mapping, names: tuple[str, ...], palette: tuple[tuple[int, int, int], ...]
) -> dict[str, LabelEncoding]:
    encoding = content.get("encoding", "index")
    if encoding == "color":
        if "palette" not in content:
            raise ValueError("encoding is color, which needs the palette of the label files")
        if content.get("ignored", "others") != "others":
            raise ValueError("ignored: with encoding color every other colour is ignored")
        if len(set(palette)) < len(palette):
            raise ValueError("a colour of the palette stands for two classes")
        return {"color": ColorEncoding({color: index for index, color in enumerate(palette)})}
    if encoding == "index":
        ids = {index: index for index in range(len(names))}
    elif isinstance(encoding, Mapping):
        ids = {}
        for value, name in encoding.items():
            if name not in names:
                near = difflib.get_close_matches(str(name), names, n=1)
                hint = f"did you mean {near[0]}?" if near else f"accepted: {', '.join(names)}"
                raise ValueError(f"encoding: {value} leads to {name!r}, which is no class; {hint}")
            ids[_byte(value, "a label value of encoding")] = names.index(name)
    else:
        raise ValueError(
            f"encoding is {encoding!r}; accepted: index, color, or values with their classes such "
            f"as {{0: {names[0]}, 255: {names[1]}}}"
        )
    kind = "index" if encoding == "index" else "values"
    return {kind: IdEncoding(ids, _ignored(content, ids, len(names)))}


def _ignored(content: Mapping, ids: Mapping[int, int], count: int) -> frozenset[int] | None:
    # In a mask of two classes 255 is more often the object than ignored: to be declared.
    usual = [255] if count > 2 and 255 not in ids else []
    values = content.get("ignored", usual)
    if values == "others":
        return None
    if not isinstance(values, list):
        raise ValueError(f'ignored is {values!r}; accepted: a list such as [255], or "others"')
    return frozenset(_byte(value, "a label value of ignored") for value in values)


def _byte(value: Any, what: str) -> int:
    if type(value) is not int or not 0 <= value <= 255:
        raise ValueError(f"{what} is {value!r}; accepted: 0..255")
    return value


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
