"""Write the list files of a dataset from the files that are there, and say what is missing.

    python tools/prepare_data.py cityscapes data/
    python tools/prepare_data.py camvid data/ --out /tmp/lists

ROOT holds one folder per dataset (it is DATASET.ROOT). Lists go to ROOT/list/<dataset>/ or to
--out. Cityscapes is taken from its official tree. CamVid is split by sequence and frame, whatever
folders its files lie in: images/<frame>.png with labels/<frame>_L.png, or one folder per split
with labels/<split>/<frame>.png. Exit status 0: complete; 1: something is missing (the lists name
what is there; the published lists of the repository are not replaced by shorter ones); 2: nothing
to list.
"""

import argparse
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import _init_paths

from datasets import read_list
from datasets.camvid import split_of
from datasets.cityscapes import CITYSCAPES
from datasets.files import REPOSITORY_DATA
from utils.records import atomic_write

SPLITS = ("train", "val", "test")
SHOWN = 3  # names per complaint


@dataclass
class Tree:
    """What lies in a dataset's folder.

    pairs: split -> frame -> (image, label), relative paths; label None in a split without labels.
    unlabelled: split -> frames whose label is missing.
    notes: what is odd but does not keep a frame out.
    """

    pairs: dict[str, dict[str, tuple[str, str | None]]] = field(
        default_factory=lambda: {split: {} for split in SPLITS}
    )
    unlabelled: dict[str, list[str]] = field(
        default_factory=lambda: {split: [] for split in SPLITS}
    )
    notes: list[str] = field(default_factory=list)

    def add(self, split: str, frame: str, image: Path, label: Path | None, folder: Path) -> None:
        """Take in one frame of a labelled split; without a label it is only counted."""
        if label is None:
            self.unlabelled[split].append(frame)
        else:
            paths = (image.relative_to(folder).as_posix(), label.relative_to(folder).as_posix())
            self.pairs[split][frame] = paths


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("dataset", choices=("cityscapes", "camvid"), metavar="DATASET")
    parser.add_argument("root", type=Path, metavar="ROOT", help="folder of the dataset's folder")
    parser.add_argument("--out", type=Path, metavar="DIR", help="default: ROOT/list/DATASET")
    parser.add_argument(
        "--labels",
        choices=tuple(CITYSCAPES.encodings),
        default="labelIds",
        help="which of the Cityscapes label files to list (default: labelIds)",
    )
    parser.add_argument("--force", action="store_true", help="replace lists that differ")
    args = parser.parse_args()
    folder = args.root / args.dataset
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder; ROOT is the folder that holds {args.dataset}/")
    tree = scan_camvid(folder) if args.dataset == "camvid" else scan_cityscapes(folder, args.labels)
    if not any(tree.pairs.values()):
        raise ValueError(
            f"{folder} holds no pair of image and label of {args.dataset} in a layout that "
            f"data/README.md describes"
        )
    complete = report(tree, args.dataset)
    out = args.out or args.root / "list" / args.dataset
    lists = list_files(tree)
    present = {name: out / name for name in lists if (out / name).exists()}
    other = [n for n, path in present.items() if path.read_text("utf-8") != lists[n]]
    if other and not args.force:
        print(
            f"nothing written: {out} already holds other {', '.join(other)}. --out DIR names "
            "another folder, --force replaces them"
        )
        return 1
    for name, text in lists.items():
        if name in present and name not in other:
            print(f"{out / name}: is up to date")
        else:
            atomic_write(out / name, text)
            print(f"{out / name}: {text.count(chr(10))} lines written")
    return 0 if complete else 1


def scan_cityscapes(folder: Path, labels: str) -> Tree:
    """leftImg8bit/<split>/<city>/<frame>_leftImg8bit.png and its gtFine label; test has none."""
    tree = Tree()
    for split in SPLITS:
        for image in sorted(folder.glob(f"leftImg8bit/{split}/*/*_leftImg8bit.png")):
            frame = image.name.removesuffix("_leftImg8bit.png")
            if split == "test":  # the published test labels are empty
                tree.pairs[split][frame] = (image.relative_to(folder).as_posix(), None)
                continue
            label = folder / "gtFine" / split / image.parent.name / f"{frame}_gtFine_{labels}.png"
            tree.add(split, frame, image, label if label.is_file() else None, folder)
    return tree


def scan_camvid(folder: Path) -> Tree:
    """All frames with their labels, in one of two layouts.

    images/ and labels/, flat or with a folder per split; or, as the SegNet tutorial distributes the
    480x360 version, <split>/ and <split>annot/.
    """
    tree = Tree()
    segnet = [folder / split for split in SPLITS if (folder / f"{split}annot").is_dir()]
    image_folders = segnet or [folder / "images"]
    label_folders = [f.with_name(f"{f.name}annot") for f in segnet] or [folder / "labels"]
    images = _by_frame(image_folders, (".png", ".jpg", ".jpeg"))
    labels = _by_frame(label_folders, (".png",))
    misplaced, strange = [], []
    for frame, image in sorted(images.items()):
        split = split_of(frame)
        if split is None:
            strange.append(frame)
            continue
        if image.parent.name in SPLITS and image.parent.name != split:
            misplaced.append(f"{image.relative_to(folder).as_posix()} ({split})")
        tree.add(split, frame, image, labels.get(frame), folder)
    if misplaced:
        tree.notes.append(f"in another split's folder, listed in their own: {_some(misplaced)}")
    if strange:
        tree.notes.append(f"of no split, left out: {_some(strange)}")
    return tree


def _by_frame(folders: Sequence[Path], suffixes: Sequence[str]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in sorted(path for folder in folders for path in folder.rglob("*")):
        if path.suffix.lower() not in suffixes or not path.is_file():
            continue
        frame = path.stem.removesuffix("_L")
        if frame in found:
            raise ValueError(f"{frame} is there twice, as {found[frame]} and {path}; keep one")
        found[frame] = path
    return found


def report(tree: Tree, dataset: str) -> bool:
    """Print what is there and what is missing of the published splits; True if nothing is."""
    complete = True
    for split in SPLITS:
        expected = _published_frames(dataset, split)
        found, unlabelled = tree.pairs[split], tree.unlabelled[split]
        kind = "images" if None in {label for _, label in found.values()} else "pairs"
        print(f"{split}: {len(expected & set(found))} of {len(expected)} {kind}")
        missing = expected - set(found) - set(unlabelled)
        if missing:
            print(f"  missing images: {_some(missing)}")
        if unlabelled:
            print(f"  images without a label: {_some(unlabelled)}")
        extra = set(found) - expected
        if extra:
            print(f"  listed, but not published in this split: {_some(extra)}")
        complete = complete and not missing and not unlabelled
    for note in tree.notes:
        print(f"note: {note}")
    return complete


def _published_frames(dataset: str, split: str) -> set[str]:
    entries = read_list(REPOSITORY_DATA / "list" / dataset / f"{split}.lst")
    return {Path(entry.image).stem.removesuffix("_leftImg8bit") for entry in entries}


def list_files(tree: Tree) -> dict[str, str]:
    """File name -> content: one list per split that has frames, and train + val."""
    lists = {split: list(tree.pairs[split].values()) for split in SPLITS}
    if lists["train"] and lists["val"]:
        lists["trainval"] = lists["train"] + lists["val"]
    for name, pairs in lists.items():
        if not pairs:
            print(f"{name}.lst: not written, no file belongs to it")
    return {
        f"{name}.lst": "".join("\t".join(filter(None, pair)) + "\n" for pair in pairs)
        for name, pairs in lists.items()
        if pairs
    }


def _some(names: Iterable[str]) -> str:
    ordered = sorted(names)
    dots = ", ..." if len(ordered) > SHOWN else ""
    return f"{len(ordered)} ({', '.join(ordered[:SHOWN])}{dots})"


if __name__ == "__main__":
    _init_paths.run_main(main)
