"""The official folder trees: which image belongs to which label and split."""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..camvid import split_of
from ..errors import InputError
from ..files import REPOSITORY_DATA, read_list
from .convert import SUFFIX

PHOTOS = (".jpg", ".jpeg", ".png")
Frames = dict[str, Path]


@dataclass
class Tree:
    """What lies in a dataset's folder.

    folder: what paths are relative to.
    pairs: split -> frame -> (image, label), relative paths; label None in a split without labels.
    unlabelled: split -> frames whose label is missing.
    expected: split -> published frames, or only how many there are; None = unknown.
    notes: what is odd but does not keep a frame out.
    """

    folder: Path
    pairs: dict[str, dict[str, tuple[str, str | None]]] = field(default_factory=dict)
    unlabelled: dict[str, list[str]] = field(default_factory=dict)
    expected: dict[str, set[str] | int | None] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def begin(self, split: str, expected: set[str] | int | None = None) -> None:
        """Declare a split."""
        self.pairs[split], self.unlabelled[split] = {}, []
        self.expected[split] = expected

    def add(self, split: str, frame: str, image: Path, label: Path | None) -> None:
        """Take in one frame of a labelled split; without a label it is only counted."""
        if label is None:
            self.unlabelled[split].append(frame)
        else:
            self.pairs[split][frame] = (self.relative(image), self.relative(label))

    def match(self, split: str, images: Frames, labels: Frames) -> None:
        """Take in all images with the labels of the same frames."""
        for frame, image in sorted(images.items()):
            self.add(split, frame, image, labels.get(frame))

    def relative(self, path: Path) -> str:
        """`path` as a list writes it."""
        return path.relative_to(self.folder).as_posix()


def scan_cityscapes(folder: Path, labels: str) -> Tree:
    """leftImg8bit/<split>/<city>/<frame>_leftImg8bit.png and its gtFine label; test has none."""
    tree = Tree(folder)
    for split in ("train", "val", "test"):
        tree.begin(split, _listed("cityscapes", split))
        for image in sorted(folder.glob(f"leftImg8bit/{split}/*/*_leftImg8bit.png")):
            frame = image.name.removesuffix("_leftImg8bit.png")
            if split == "test":  # the published test labels are empty
                tree.pairs[split][frame] = (tree.relative(image), None)
                continue
            label = folder / "gtFine" / split / image.parent.name / f"{frame}_gtFine_{labels}.png"
            tree.add(split, frame, image, label if label.is_file() else None)
    return tree


def scan_camvid(folder: Path, labels: str) -> Tree:
    """All frames with their labels, in one of two layouts.

    images/ and labels/, flat or with a folder per split; or, as the SegNet tutorial distributes the
    480x360 version, <split>/ and <split>annot/.
    """
    tree, splits = Tree(folder), ("train", "val", "test")
    for split in splits:
        tree.begin(split, _listed("camvid", split))
    segnet = [folder / split for split in splits if (folder / f"{split}annot").is_dir()]
    image_folders = segnet or [folder / "images"]
    label_folders = [f.with_name(f"{f.name}annot") for f in segnet] or [folder / "labels"]
    images = _frames(image_folders, PHOTOS, "_L")
    by_frame = _frames(label_folders, (".png",), "_L")
    misplaced, strange = [], []
    for frame, image in sorted(images.items()):
        split = split_of(frame)
        if split is None:
            strange.append(frame)
            continue
        if image.parent.name in splits and image.parent.name != split:
            misplaced.append(f"{tree.relative(image)} ({split})")
        tree.add(split, frame, image, by_frame.get(frame))
    if misplaced:
        tree.notes.append(f"in another split's folder, listed in their own: {some(misplaced)}")
    if strange:
        tree.notes.append(f"of no split, left out: {some(strange)}")
    return tree


def scan_ade20k(folder: Path, labels: str) -> Tree:
    """{images,annotations}/{training,validation}/ADE_<split>_<number>.{jpg,png}."""
    tree = Tree(folder)
    for split, name, count in (("train", "training", 20210), ("val", "validation", 2000)):
        tree.begin(split, {f"ADE_{split}_{number:08d}" for number in range(1, count + 1)})
        images = _frames([folder / "images" / name], PHOTOS)
        tree.match(split, images, _frames([folder / "annotations" / name], (".png",)))
    return tree


def scan_cocostuff164k(folder: Path, labels: str) -> Tree:
    """images/{train2017,val2017}/<number>.jpg, annotations/<same>/<number>[_labelTrainIds].png."""
    tree = Tree(folder)
    for split, count in (("train", 118287), ("val", 5000)):
        tree.begin(split, count)
        images = _frames([folder / f"images/{split}2017"], PHOTOS)
        tree.match(split, images, _coco_labels(folder / f"annotations/{split}2017", labels))
    return tree


def scan_cocostuff10k(folder: Path, labels: str) -> Tree:
    """images/*.jpg, annotations/*_labelTrainIds.png, imageLists/{train,test}.txt.

    Or both with the folders train2014 and test2014, as the usual converter leaves them.
    """
    tree = Tree(folder)
    for split, count in (("train", 9000), ("test", 1000)):
        names = _names(folder / f"imageLists/{split}.txt")
        tree.begin(split, names or count)
        inner = f"{split}2014" if (folder / f"images/{split}2014").is_dir() else ""
        if not inner and names is None:
            raise InputError(
                f"{folder}/imageLists/{split}.txt does not exist; it says what {split} is"
            )
        images = _frames([folder / "images" / inner], PHOTOS, deep=False)
        if names is not None:
            images = {frame: path for frame, path in images.items() if frame in names}
        tree.match(split, images, _coco_labels(folder / "annotations" / inner, labels))
    return tree


def scan_voc2012(folder: Path, labels: str) -> Tree:
    """JPEGImages/<frame>.jpg, SegmentationClass/<frame>.png, ImageSets/Segmentation/<split>.txt.

    The augmented training set needs SegmentationClassAug/ with the labels of SBD; what is in
    SegmentationClass/ too is taken from there.
    """
    tree, sets = Tree(folder), folder / "ImageSets/Segmentation"
    images = _frames([folder / "JPEGImages"], PHOTOS)
    own = _frames([folder / "SegmentationClass"], (".png",))
    augmented = _frames([folder / "SegmentationClassAug"], (".png",))
    for split in ("train", "val"):
        names = _names(sets / f"{split}.txt")
        if names is None:
            raise InputError(f"{sets}/{split}.txt does not exist; it says what {split} is")
        tree.begin(split, names)
        tree.match(split, {f: images[f] for f in names if f in images}, own)
    if augmented:
        names = _names(sets / "trainaug.txt") or (
            (tree.expected["train"] | set(augmented)) - tree.expected["val"]
        )
        tree.begin("trainaug", names)
        tree.match("trainaug", {f: images[f] for f in names if f in images}, augmented | own)
        leaked = names & tree.expected["val"]
        if leaked:
            tree.notes.append(f"trainaug.txt holds frames of val: {some(leaked)}")
    return tree


SCANNERS: dict[str, Callable[[Path, str], Tree]] = {
    "ade20k": scan_ade20k,
    "camvid": scan_camvid,
    "cityscapes": scan_cityscapes,
    "cocostuff10k": scan_cocostuff10k,
    "cocostuff164k": scan_cocostuff164k,
    "voc2012": scan_voc2012,
}


def some(names: Iterable[str], shown: int = 3) -> str:
    """Number and first of `names`: "5 (a, b, c, ...)"."""
    ordered = sorted(names)
    dots = ", ..." if len(ordered) > shown else ""
    return f"{len(ordered)} ({', '.join(ordered[:shown])}{dots})"


def _listed(dataset: str, split: str) -> set[str]:
    entries = read_list(REPOSITORY_DATA / "list" / dataset / f"{split}.lst")
    return {Path(entry.image).stem.removesuffix("_leftImg8bit") for entry in entries}


def _names(path: Path) -> set[str] | None:
    """The frames of a text file, one a line (bare, or as a path with or without a label)."""
    if not path.is_file():
        return None
    lines = path.read_text(encoding="utf-8-sig").splitlines()
    return {
        re.sub(r"\.\w{3,4}$", "", line.split()[0].rsplit("/", 1)[-1])
        for line in lines
        if line.strip()
    }


def _coco_labels(folder: Path, labels: str) -> Frames:
    found = _frames([folder], (".png",), deep=False)
    ending = SUFFIX.removesuffix(".png")
    if labels == "stuffthingmaps":
        return {frame: path for frame, path in found.items() if not frame.endswith(ending)}
    return {f.removesuffix(ending): path for f, path in found.items() if f.endswith(ending)}


def _frames(
    folders: Sequence[Path], suffixes: Sequence[str], ending: str = "", *, deep: bool = True
) -> Frames:
    """Frame -> file of `folders`, whose name is the frame, `ending` and one of `suffixes`.

    Upper and lower case of suffixes is all one. Raises ValueError for a frame that is there twice.
    """
    found: Frames = {}
    for path in sorted(p for f in folders for p in (f.rglob("*") if deep else f.glob("*"))):
        if path.suffix.lower() not in suffixes or not path.is_file():
            continue
        frame = path.stem.removesuffix(ending)
        if frame in found:
            raise InputError(f"{frame} is there twice, as {found[frame]} and {path}; keep one")
        found[frame] = path
    return found
