"""A dataset of one's own: class names, colours and label encoding in a yaml file.

    class_names: [background, leaf, stem]     # in the order of the network's outputs
    palette: [[0, 0, 0], [60, 160, 60], [150, 110, 60]]     # for pictures; may be left out
    encoding: index        # label values 0, 1, 2 (default); or color: RGB labels in the palette's
                           # colours; or values of your own: {0: background, 85: leaf, 170: stem}
    ignored: [255]         # label values without a class; "others": all that encoding leaves out

docs/your_own_data.md goes through it.
"""

import difflib
import functools
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import yaml

from .errors import InputError
from .files import read_text
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
        how = "is a folder, not a file" if path.is_dir() else "does not exist"
        raise FileNotFoundError(f"DATASET.DATASET {path} {how}")
    text = read_text(path)
    try:
        content = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError) as error:  # the second: a date or number that is none
        raise InputError(f"{path} is not valid yaml: {' '.join(str(error).split())}") from None
    try:
        return _meta(path, content)
    except ValueError as error:
        raise InputError(f"{path}: {str(error).removeprefix(f'{path.stem}: ')}") from None


def _meta(path: Path, content: Any) -> DatasetMeta:
    name = path.stem
    if not isinstance(content, Mapping):
        raise InputError("a dataset is declared as KEY: value, class_names at least")
    for key in content:
        if key not in KEYS:
            near = difflib.get_close_matches(str(key), KEYS, n=1)
            hint = f"did you mean {near[0]}?" if near else f"accepted: {', '.join(KEYS)}"
            raise InputError(f"unknown key {key}; {hint}")
    if not re.fullmatch(r"[\w.-]+", name):
        raise InputError(
            "the file's name names the dataset and its runs; accepted: letters, digits, _ . -"
        )
    names = _class_names(content.get("class_names"))
    if len(names) == 1:
        raise InputError(
            f"one class, {names[0]}; a mask of one thing has two: background and {names[0]}"
        )
    palette = _palette(content.get("palette"), len(names))
    return DatasetMeta(
        name,
        names,
        palette,
        _encodings(content, names, palette),
        ignore_label=_byte(content.get("ignore_label", 255), "ignore_label"),
        class_weights=_weights(content.get("class_weights")),
        folders=(name, "."),
        origin=str(path),
    )


def _class_names(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not value:
        raise InputError(f"class_names is {value!r}; accepted: a list such as [background, leaf]")
    for name in value:
        if not isinstance(name, str) or not name.strip():
            raise InputError(f"the class name {name!r} is not text; put it in quotes")
    return tuple(value)


def _palette(value: Any, count: int) -> tuple[tuple[int, int, int], ...]:
    if value is None:
        return distinct_colors(count)
    if not isinstance(value, list) or not all(
        isinstance(color, list) and all(type(part) is int for part in color) for color in value
    ):
        raise InputError(f"palette is {value!r}; accepted: a colour [red, green, blue] per class")
    return tuple(tuple(color) for color in value)


@functools.cache
def distinct_colors(count: int) -> tuple[tuple[int, int, int], ...]:
    """`count` (1..255) colours, each as far as possible from black and from those before it.

    Black is left to ignored pixels, white to the paper around pictures. More colours begin with
    the same ones.
    """
    steps = np.linspace(0, 1, 9, dtype=np.float32)
    rgb = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), -1).reshape(1, -1, 3)
    seen = cv2.cvtColor(rgb, cv2.COLOR_RGB2LAB)[0]  # distances as the eye sees them
    black, white = 0, len(seen) - 1
    distance = np.minimum(*(np.linalg.norm(seen - seen[taken], axis=1) for taken in (black, white)))
    chosen = []
    for _ in range(count):
        chosen.append(int(distance.argmax()))
        distance = np.minimum(distance, np.linalg.norm(seen - seen[chosen[-1]], axis=1))
    return tuple(tuple(color) for color in np.rint(255 * rgb[0, chosen]).astype(int).tolist())


def _encodings(
    content: Mapping, names: tuple[str, ...], palette: tuple[tuple[int, int, int], ...]
) -> dict[str, LabelEncoding]:
    encoding = content.get("encoding", "index")
    if encoding == "color":
        if "palette" not in content:
            raise InputError("encoding is color, which needs the palette of the label files")
        if content.get("ignored", "others") != "others":
            raise InputError("ignored: with encoding color every other colour is ignored")
        if len(set(palette)) < len(palette):
            raise InputError("a colour of the palette stands for two classes")
        return {"color": ColorEncoding({color: index for index, color in enumerate(palette)})}
    if encoding == "index":
        ids = {index: index for index in range(len(names))}
    elif isinstance(encoding, Mapping):
        ids = {}
        for value, name in encoding.items():
            if name not in names:
                near = difflib.get_close_matches(str(name), names, n=1)
                hint = f"did you mean {near[0]}?" if near else f"accepted: {', '.join(names)}"
                raise InputError(f"encoding: {value} leads to {name!r}, which is no class; {hint}")
            ids[_byte(value, "a label value of encoding")] = names.index(name)
    else:
        raise InputError(
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
        raise InputError(f'ignored is {values!r}; accepted: a list such as [255], or "others"')
    return frozenset(_byte(value, "a label value of ignored") for value in values)


def _byte(value: Any, what: str) -> int:
    if type(value) is not int or not 0 <= value <= 255:
        raise InputError(f"{what} is {value!r}; accepted: 0..255")
    return value


def _weights(value: Any) -> tuple[float, ...] | None:
    if value is None:
        return None
    try:
        # 1e-1 is text in yaml, which asks for 1.0e-1.
        if isinstance(value, list) and not any(isinstance(weight, bool) for weight in value):
            return tuple(_number(weight) for weight in value)
    except (TypeError, ValueError):
        pass
    raise InputError(f"class_weights is {value!r}; accepted: a number for each class")


def _number(value: Any) -> float:
    try:
        return float(value)
    except OverflowError:  # an integer of hundreds of digits; 1e400 is infinite as well
        return math.inf if value > 0 else -math.inf
