"""What the labels of a list hold as a whole: are they read in the right encoding?"""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..meta import DatasetMeta, IdEncoding, LabelEncoding, format_ranges

A_PART = 0.05  # share of pixels of value 0 that may be a forgotten background
MOSTLY_IGNORED = 0.5  # share of ignored pixels from which on it is said
# Another encoding is the right one where so many of all pixels more are classes in it, and not of
# the value 0 alone, which may be nothing or the first class.
CLEARLY = 0.2
MANY_LABELS = 4  # that lack the ignored value, but nearly all have the other encoding's
NEARLY_ALL = 0.9


class LabelCounts:
    """What the labels of a list hold, added up label by label.

    labels: how many were read.
    pixels, files: per label value, (256,) int64, of encodings by value.
    classes: pixels per class, the ignored ones last, (num_classes + 1,) int64.
    """

    def __init__(self, num_classes: int) -> None:
        self.labels = 0
        self.pixels = np.zeros(256, np.int64)
        self.files = np.zeros(256, np.int64)
        self.classes = np.zeros(num_classes + 1, np.int64)

    def add(self, values: np.ndarray | None, classes: np.ndarray | None) -> None:
        """Take in the pixels per label value and per class of one label, as far as known."""
        self.labels += values is not None or classes is not None
        if values is not None:
            self.pixels += values
            self.files += values > 0
        if classes is not None:
            self.classes += classes


def class_counts(label: np.ndarray, num_classes: int, ignore_label: int) -> np.ndarray:
    """Pixels per class of (H, W) class indices, the ignored ones last: (num_classes + 1,) int64."""
    counts = np.bincount(label.ravel(), minlength=256)
    return np.append(counts[:num_classes], counts[ignore_label])


def judge(
    meta: DatasetMeta, encoding: str, named: bool, counts: LabelCounts, names: Sequence[str]
) -> tuple[list[str], list[str]]:
    """Problems and remarks about the encoding that the labels are read in, as sentences.

    Args:
        encoding: the one in use.
        named: whether the user set it (DATASET.LABELS).
        counts: of the labels that were read.
        names: their files.
    """
    problems: list[str] = []
    remarks: list[str] = []
    scheme = meta.encoding(encoding)
    if isinstance(scheme, IdEncoding) and counts.pixels.any():
        problems, remarks = _compare(meta, encoding, named, counts, names)
    pixels = max(int(counts.classes.sum()), 1)
    ignored = counts.classes[-1] / pixels
    if ignored == 1 and not problems:
        problems.append(
            f"none of {counts.labels} labels has a pixel of a class of {meta.name} when read as "
            f"{encoding}; {_instead(meta, encoding, counts)}"
        )
    elif mask := _mask(meta, scheme, counts):
        remarks.append(mask)
    elif ignored > MOSTLY_IGNORED and not problems:
        remarks.append(
            f"{ignored:.0%} of the label pixels are ignored when read as {encoding}; only the "
            "others train and count"
        )
    zeros = counts.pixels[0] / pixels
    if meta.origin and isinstance(scheme, IdEncoding) and zeros > A_PART and 0 not in scheme.ids:
        remarks.append(
            f"label value 0, {zeros:.0%} of the label pixels, is ignored; if it is background, "
            f"give it a class in {meta.origin}, in class_names and as 0 in encoding"
        )
    return problems, remarks


def _instead(meta: DatasetMeta, encoding: str, counts: LabelCounts) -> str:
    """What to set where `encoding` makes no pixel a class: the end of a sentence."""
    if meta.origin:
        return f"{meta.origin} says how labels are encoded"
    total = int(counts.pixels.sum())
    others = _others(meta, encoding, counts) if total else {}
    whole = [name for name, other in others.items() if _classes(other, counts) == total]
    if len(whole) == 1:
        return f"read as {whole[0]} all of their pixels are classes; set DATASET.LABELS {whole[0]}"
    return f"DATASET.LABELS accepts {', '.join(meta.encodings)}"


def _compare(
    meta: DatasetMeta, encoding: str, named: bool, counts: LabelCounts, names: Sequence[str]
) -> tuple[list[str], list[str]]:
    scheme, total = meta.encoding(encoding), int(counts.pixels.sum())
    spoken = None if named else _spoken_by(names, meta, encoding)
    keep = f"DATASET.LABELS {encoding} keeps it as it is"
    name, sure = _rival(meta, encoding, counts, spoken)
    if name is not None:
        now, then = (_classes(meta.encoding(one), counts) for one in (encoding, name))
        sentence = (
            f"{counts.labels} labels hold the values "
            f"{format_ranges(np.flatnonzero(counts.pixels).tolist())}: read as {encoding} "
            f"{now / total:.0%} of their pixels are classes, read as {name} {then / total:.0%}"
        )
        if named:
            return [], [f"{sentence}; is {encoding} meant, as DATASET.LABELS says?"]
        if sure:
            return [f"{sentence}; set DATASET.LABELS {name} ({keep})"], []
        return [], [f"{sentence}; if they are such, set DATASET.LABELS {name} ({keep})"]
    lacking = _with_ignored_values(meta, encoding, counts)
    if named or not lacking:
        return [], []
    theirs = meta.encoding(lacking[0]).ignored
    sentence = (
        f"none of {counts.labels} labels has the value {format_ranges(scheme.ignored)} that "
        f"{encoding} ignores, nearly all have {format_ranges(theirs)}, which "
        f"{' and '.join(lacking)} ignore{'s' * (len(lacking) == 1)}: if that means nothing, every "
        f"class is one off; then set DATASET.LABELS {' or '.join(lacking)} ({keep})"
    )
    return ([sentence], []) if counts.labels >= MANY_LABELS else ([], [sentence])


def better_encodings(meta: DatasetMeta, encoding: str, counts: LabelCounts) -> list[str]:
    """The encodings one of which both checks ask to set instead; [] where they find no problem."""
    values = np.flatnonzero(counts.pixels).astype(np.uint8)
    if meta.encoding(encoding).unknown_values(values):
        return list(_others(meta, encoding, counts))[:1]
    name, sure = _rival(meta, encoding, counts, None)
    if name is not None:
        return [name] if sure else []
    many = counts.labels >= MANY_LABELS
    return _with_ignored_values(meta, encoding, counts) if many else []


def _others(meta: DatasetMeta, encoding: str, counts: LabelCounts) -> dict[str, IdEncoding]:
    """The other encodings by value that know all values of the labels."""
    values = np.flatnonzero(counts.pixels).astype(np.uint8)
    return {
        name: other
        for name, other in meta.encodings.items()
        if isinstance(other, IdEncoding)
        and other is not meta.encoding(encoding)
        and not other.unknown_values(values)
    }


def _rival(
    meta: DatasetMeta, encoding: str, counts: LabelCounts, spoken: str | None
) -> tuple[str | None, bool]:
    """An encoding in which more pixels are classes, and whether it is surely the right one.

    `spoken` is the one that the files' names tell.
    """
    scheme, total = meta.encoding(encoding), int(counts.pixels.sum())
    values = np.flatnonzero(counts.pixels).astype(np.uint8)
    now, unknown = _classes(scheme, counts), scheme.unknown_values(values)
    for name, other in _others(meta, encoding, counts).items():
        then = _classes(other, counts)
        gained = [v for v in values.tolist() if v in other.ids and v not in scheme.ids]
        if then > now and (any(gained) or spoken == name or unknown):
            return name, then - now >= CLEARLY * total or spoken == name or bool(unknown)
    return None, False


def _with_ignored_values(meta: DatasetMeta, encoding: str, counts: LabelCounts) -> list[str]:
    """Encodings whose ignored values nearly all labels have, while none has those of `encoding`."""
    scheme = meta.encoding(encoding)
    others = _others(meta, encoding, counts)
    return [name for name, other in others.items() if _lacks_its_ignored(scheme, other, counts)]


def _mask(meta: DatasetMeta, scheme: LabelEncoding, counts: LabelCounts) -> str | None:
    """The remark about labels that seem to be masks: of all classes only 0, the rest ignored."""
    if not meta.origin or not isinstance(scheme, IdEncoding):
        return None
    values = np.flatnonzero(counts.pixels).tolist()
    ignored = [value for value in values if value not in scheme.ids]
    if scheme.unknown_values(np.array(values, np.uint8)):
        return None  # which each label's own sentence says
    if not ignored or [value for value in values if value in scheme.ids] != [0]:
        return None
    thing = max(ignored, key=lambda value: counts.pixels[value])
    first, others = meta.class_names[scheme.ids[0]], list(meta.class_names)
    others.remove(first)
    share = counts.pixels[thing] / counts.pixels.sum()
    return (
        f"{share:.1%} of the label pixels are {thing}, which is read as ignored, and no pixel is "
        f"of another class than {first}: if {thing} is a class, declare it in {meta.origin} with "
        f"encoding: {{0: {first}, {thing}: {others[0]}}}"
    )


def _lacks_its_ignored(scheme: IdEncoding, other: IdEncoding, counts: LabelCounts) -> bool:
    """Whether only the other encoding's ignored values occur, and in nearly every label."""
    if not scheme.ignored or not other.ignored or _classes(scheme, counts) < counts.pixels.sum():
        return False
    nearly_all = max(counts.files[list(other.ignored)]) >= NEARLY_ALL * counts.labels
    return nearly_all and _classes(other, counts) > (1 - MOSTLY_IGNORED) * counts.pixels.sum()


def _classes(scheme: IdEncoding, counts: LabelCounts) -> int:
    """Pixels whose label value is a class."""
    return int(counts.pixels[list(scheme.ids)].sum())


def _spoken_by(names: Sequence[str], meta: DatasetMeta, encoding: str) -> str | None:
    """The encoding that all file names end in, if it is another one: x_trainIds.png, x_train_id."""
    keys = {name: _key(name).removeprefix("label") for name in meta.encodings}
    spoken = None
    for file in names:
        stem = _key(Path(file).stem)
        fits = [name for name, key in keys.items() if len(key) > 3 and stem.endswith(key)]
        best = max(fits, key=lambda name: len(keys[name]), default=None)
        if best is None or spoken not in (None, best):
            return None
        spoken = best
    if spoken is None or keys[encoding].startswith(keys[spoken]):
        return None  # *_labelTrainIds.png are trainIds and trainIdsFrom1 alike
    return spoken


def _key(text: str) -> str:
    return re.sub(r"[^a-z0-9]", "", text.lower()).removesuffix("s")
