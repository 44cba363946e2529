"""Write the list files of a dataset from the files that are there, and say what is missing.

    python tools/prepare_data.py cityscapes data/
    python tools/prepare_data.py camvid data/ --out /tmp/lists
    python tools/prepare_data.py voc2012 data/ --sbd benchmark_RELEASE/dataset

DATASET is ade20k, camvid, cityscapes, cocostuff10k, cocostuff164k or voc2012, in its official
folder tree (data/README.md). ROOT holds one folder per dataset (it is DATASET.ROOT). Lists go to
ROOT/list/<dataset>/ or to --out. CamVid is split by sequence and frame, whatever folders its files
lie in. Labels of COCO-Stuff are first converted to *_labelTrainIds.png beside them, those of SBD
to SegmentationClassAug/, as far as they are not there yet. Exit status 0: complete; 1: something
is missing (the lists name what is there; the published lists of the repository are not replaced by
shorter ones; with --partial that is status 0); 2: nothing to list.
"""

import argparse
from pathlib import Path

import _init_paths
from tqdm import tqdm

from datasets import get_meta
from datasets.machine import cpu_count
from datasets.prepare.convert import convert, pending, spelling_10k
from datasets.prepare.trees import SCANNERS, Tree, some
from utils.errors import InputError
from utils.records import atomic_write

LABELS = {  # label files that lists can name; the first is the default
    "cityscapes": ("labelIds", "labelTrainIds"),
    "cocostuff164k": ("labelTrainIds", "stuffthingmaps"),
}


def main() -> int:
    args = parse_args()
    choices = LABELS.get(args.dataset, ("",))
    labels = args.labels or choices[0]
    if labels not in choices:
        accepted = ", ".join(choices) if choices != ("",) else f"nothing for {args.dataset}"
        raise InputError(f"--labels is {labels}; accepted: {accepted}")
    folder = get_meta(args.dataset).folder_under(args.root)
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder; ROOT is the folder that holds {args.dataset}/")
    failed = 0
    if labels != "stuffthingmaps":
        failed = convert_labels(args.dataset, folder, args.sbd, args.workers)
    tree = SCANNERS[args.dataset](folder, labels)
    if not any(tree.pairs.values()):
        raise InputError(
            f"{folder} holds no pair of image and label of {args.dataset} in a layout that "
            f"data/README.md describes"
        )
    complete = report(tree) and not failed
    advise(args.dataset, tree, labels)
    out = args.out or args.root / "list" / args.dataset
    if not write_lists(list_files(tree), out, args.force):
        return 1
    return 0 if complete or (args.partial and not failed) else 1


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("dataset", choices=tuple(SCANNERS), metavar="DATASET")
    parser.add_argument("root", type=Path, metavar="ROOT", help="folder of the dataset's folder")
    parser.add_argument("--out", type=Path, metavar="DIR", help="default: ROOT/list/DATASET")
    parser.add_argument(
        "--labels",
        metavar="KIND",
        help="cityscapes: labelIds (default) or labelTrainIds; cocostuff164k: labelTrainIds "
        "(default, converted) or stuffthingmaps (the published files as they are)",
    )
    parser.add_argument("--sbd", type=Path, metavar="DIR", help="voc2012: SBD's folder dataset/")
    parser.add_argument("--workers", type=int, default=cpu_count(), metavar="N", help="processes")
    parser.add_argument("--partial", action="store_true", help="a part of the dataset is fine")
    parser.add_argument("--force", action="store_true", help="replace lists that differ")
    return parser.parse_args()


def convert_labels(dataset: str, folder: Path, sbd: Path | None, workers: int) -> int:
    """Write the index PNGs that are lacking; the number of labels that cannot be converted."""
    if sbd is not None and not (sbd / "cls").is_dir():
        raise InputError(f"--sbd {sbd} holds no folder cls/ with the labels of SBD")
    jobs = pending(dataset, folder, sbd)
    if not jobs:
        return 0
    results = convert(dataset, jobs, workers, atomic_write)
    bar = tqdm(results, "convert", len(jobs), unit="label", disable=None, leave=False)
    problems = [problem for problem in bar if problem]
    for problem in problems:
        print(f"problem: {problem}")
    print(f"{len(jobs) - len(problems)} label files converted, {len(problems)} failed")
    return len(problems)


def report(tree: Tree) -> bool:
    """Print what is there and what is missing of the published splits; True if nothing is."""
    complete = True
    for split, found in tree.pairs.items():
        expected, unlabelled = tree.expected[split], tree.unlabelled[split]
        kind = "images" if None in {label for _, label in found.values()} else "pairs"
        if isinstance(expected, set):
            print(f"{split}: {len(expected & set(found))} of {len(expected)} {kind}")
            missing = expected - set(found) - set(unlabelled)
            if missing:
                print(f"  missing images: {some(missing)}")
            extra = set(found) - expected
            if extra:
                print(f"  listed, but not published in this split: {some(extra)}")
            complete = complete and not missing
        else:
            print(f"{split}: {len(found)} of {expected} {kind}")
            complete = complete and len(found) >= expected
        if unlabelled:
            print(f"  images without a label: {some(unlabelled)}")
            complete = False
    for note in tree.notes:
        print(f"note: {note}")
    return complete


def advise(dataset: str, tree: Tree, labels: str) -> None:
    """Say which DATASET.LABELS the lists need where it is not the default."""
    if dataset == "cocostuff10k":
        files = (
            tree.folder / label for pairs in tree.pairs.values() for _, label in pairs.values()
        )
        spellings = spelling_10k(files)
    else:
        spellings = [labels]
    meta = get_meta(dataset)
    known = [name for name in spellings if name in meta.encodings]
    if known and all(meta.encoding(name) is not meta.encoding() for name in known):
        print(f"note: these label files are read with DATASET.LABELS {' or '.join(known)}")


def list_files(tree: Tree) -> dict[str, str]:
    """File name -> content: one list per split that has frames, and train + val."""
    lists = {split: list(pairs.values()) for split, pairs in tree.pairs.items()}
    if lists["train"] and lists.get("val"):
        lists["trainval"] = lists["train"] + lists["val"]
    for name, pairs in lists.items():
        if not pairs:
            print(f"{name}.lst: not written, no file belongs to it")
    return {
        f"{name}.lst": "".join(f"{list_line(*pair)}\n" for pair in pairs)
        for name, pairs in lists.items()
        if pairs
    }


def list_line(image: str, label: str | None) -> str:
    """A line of a list; a TAB at its end keeps the spaces of a name without label."""
    if label is None:
        return f"{image}\t" if " " in image else image
    return f"{image}\t{label}"


def write_lists(lists: dict[str, str], out: Path, force: bool) -> bool:
    """Write what differs from the lists in `out`; False where others stand there already."""
    present = {name: out / name for name in lists if (out / name).exists()}
    other = [n for n, path in present.items() if path.read_text("utf-8") != lists[n]]
    if other and not force:
        print(
            f"nothing written: {out} already holds other {', '.join(other)}. --out DIR names "
            "another folder, --force replaces them"
        )
        return False
    for name, text in lists.items():
        if name in present and name not in other:
            print(f"{out / name}: is up to date")
        else:
            atomic_write(out / name, text)
            print(f"{out / name}: {text.count(chr(10))} lines written")
    return True


if __name__ == "__main__":
    _init_paths.run_main(main)
