"""Check every pair that a configuration names, before training.

    python tools/check_data.py --cfg configs/camvid/pidnet_s_camvid.yaml DATASET.ROOT data/

Reads all files of DATASET.TRAIN_SET and DATASET.TEST_SET in WORKERS processes and prints every
problem with its list line, then what each class holds. Exit status 0: sound; 1: problems;
2: nothing could be checked.
"""

import argparse

import _init_paths
from tqdm import tqdm

from configs import get_config
from datasets import EvalTransform, SegmentationDataset, get_meta
from datasets.checking import Summary, examine_all


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cfg", required=True, metavar="YAML", help="configuration to check for")
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="replaces its settings")
    args = parser.parse_intermixed_args()
    config = get_config(args.cfg, args.opts)
    meta = get_meta(config.DATASET.DATASET)
    if meta.name == "synthetic":
        print("synthetic: scenes are drawn, there are no files to check")
        return 0
    lists = dict.fromkeys((config.DATASET.TRAIN_SET, config.DATASET.TEST_SET))
    sets = [
        SegmentationDataset(
            config.DATASET.ROOT, name, meta, config.DATASET.LABELS, transform=EvalTransform()
        )
        for name in lists
    ]
    print(f"{meta.name} under {sets[0].folder}, labels read as {sets[0].encoding}")
    summaries = [check(dataset, config.WORKERS) for dataset in sets]
    for summary in summaries:
        report(summary)
    common = set.intersection(*({entry.image for entry in dataset.entries} for dataset in sets))
    if len(sets) > 1 and common:
        print(f"note: {len(common)} images are in both lists, {min(common)} for one")
    problems = sum(len(summary.problems) for summary in summaries)
    checked = sum(len(dataset) for dataset in sets)
    print(f"{checked} entries checked, {problems or 'no'} problem{'s' if problems > 1 else ''}")
    return 1 if problems else 0


def check(dataset: SegmentationDataset, workers: int) -> Summary:
    """Examine a whole list behind a progress bar."""
    summary = Summary(dataset)
    name = str(dataset.list_path)
    for finding in tqdm(
        examine_all(dataset, workers), name, len(dataset), unit="pair", disable=None, leave=False
    ):
        summary.add(finding)
    summary.finish()
    return summary


def report(summary: Summary) -> None:
    """Print problems, notes and the class table of one list."""
    dataset = summary.dataset
    kind = "pairs" if dataset.labelled else "images without labels"
    sizes = ", ".join(f"{h}x{w} ({n})" for (h, w), n in summary.sizes.most_common(4))
    if len(summary.sizes) > 4:
        sizes += f" and {len(summary.sizes) - 4} more"
    print(f"\n{dataset.list_path}: {len(dataset)} {kind}; height x width: {sizes or 'unknown'}")
    for problem in summary.problems:
        print(f"problem: {problem}")
    for note in summary.notes:
        print(f"note: {note}")
    total = int(summary.pixels.sum())
    if not total:
        return
    print(f"{'class':<20}{'pixels %':>10}{'images':>8}")
    names = (*dataset.meta.class_names, "(ignored)")
    for name, pixels, images in zip(names, summary.pixels, summary.images, strict=True):
        print(f"{name:<20}{100 * pixels / total:>10.3f}{images:>8}")


if __name__ == "__main__":
    _init_paths.run_main(main)
