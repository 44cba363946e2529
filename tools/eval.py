"""Score weights on the test list of a configuration.

    python tools/eval.py --cfg configs/camvid/rtlinearformer_slim_camvid_360x480.yaml \
        DATASET.ROOT data/ DATASET.TEST_SET list/camvid/test.lst TEST.MODEL_FILE best.pt

Prints a table of every class and `mIoU NN.NN` (percent), and writes into the run folder
eval_<list>.json, eval_<list>.txt and TEST.OVERLAYS pictures (image, truth, prediction). Without
TEST.MODEL_FILE it takes best.pt of the run folder. For a list without labels it writes the
predictions as the test server expects them; TEST.SUBMISSION True does so for any list.
"""

import argparse
import shlex
import sys
from pathlib import Path
from typing import Any

import _init_paths
import numpy as np
import torch
from builders import build_dataset, build_network, load_into
from manifest import published_score, where_to_get
from torch import Tensor
from yacs.config import CfgNode

from configs import get_config
from configs.arguments import parse_arguments
from configs.loader import run_folder
from datasets import SceneDataset, get_meta, make_loader, quick_check
from utils.distributed import check_gpus, init_world, is_launched, set_backends, share_cores
from utils.engine import evaluate
from utils.metrics import ConfusionMatrix
from utils.records import atomic_write, environment, sha256, write_json
from utils.visualize import side_by_side, write_png


def main() -> int:
    args = parse_args()
    config = get_config(args.cfg, args.opts)
    check_gpus(config.GPUS)
    if is_launched():
        raise ValueError("tools/eval.py runs as one process; start it without torchrun")
    world = init_world(config.GPUS[:1])
    set_backends(seed=config.SEED, tf32=config.TF32, benchmark=False, deterministic=False)
    folder = run_folder(config, args.cfg)
    meta = get_meta(config.DATASET.DATASET)
    model = build_network(config, meta)
    path = Path(config.TEST.MODEL_FILE or folder / "best.pt")
    if not path.is_file():
        hint = "; train first or set TEST.MODEL_FILE"
        if config.TEST.MODEL_FILE:
            hint = where_to_get(path)
        raise FileNotFoundError(f"weights {path} do not exist{hint}")
    report = load_into(model, path, meta, key="TEST.MODEL_FILE", inference=True)
    dataset = build_dataset(config, train=False)
    for remark in quick_check(dataset):
        print(f"warning: {remark}")
    print(f"{path}: {report}; on {world.device}")
    loader = make_loader(
        dataset,
        batch_size=config.TEST.BATCH_SIZE_PER_GPU,
        workers=share_cores(config.WORKERS, world),
    )
    confusion = ConfusionMatrix(meta.num_classes, meta.class_names, meta.ignore_label, world.device)
    name = record_name(config)
    writer = PictureWriter(config, dataset, folder, name)
    views = view_options(config)
    model.to(world.device, memory_format=torch.channels_last)
    evaluate(model, loader, confusion, world=world, on_batch=writer, **views)

    record: dict[str, Any] = {
        "command": ["python", "tools/eval.py", *sys.argv[1:]],
        "config": shlex.join(args.cfg),
        "architecture": model.architecture,
        "dataset": meta.name,
        "test_set": config.DATASET.TEST_SET,
        "images": len(dataset),
        "weights": str(path),
        "weights_sha256": sha256(path),
        "views": {key: list(v) if isinstance(v, tuple) else v for key, v in views.items()},
        "resize": {
            "short_side": config.TEST.SHORT_SIDE,
            "long_side": config.TEST.LONG_SIDE,
            "size_divisor": config.TEST.SIZE_DIVISOR,
        },
        "precision": "fp32",
        "environment": environment(world.device),
    }
    if dataset.labelled:
        table = confusion.table() + "\n\n" + confusion.summary()
        atomic_write(folder / f"eval_{name}.txt", table + "\n")
        record["scores"] = confusion.to_dict()
        print(table)
        if published := published_score(path):
            print(published)
    else:
        print("the list names no labels, so there is no score")
    write_json(folder / f"eval_{name}.json", record)
    print(f"record {folder / f'eval_{name}.json'}; pictures {writer.report()}")
    return 0


def view_options(config: CfgNode) -> dict[str, Any]:
    """Arguments of `predict_logits` that the configuration asks for."""
    test = config.TEST
    views: dict[str, Any] = {"flip": test.FLIP_TEST, "scales": test.SCALES, "pad": test.PAD}
    if test.SLIDE:
        width, height = test.SLIDE
        step_x, step_y = test.STRIDE or (max(1, 2 * width // 3), max(1, 2 * height // 3))
        views |= {"mode": "slide", "crop_size": (height, width), "stride": (step_y, step_x)}
    return views


def record_name(config: CfgNode) -> str:
    """What tells this evaluation's files from others': list, weights if named, views if several.

    list/camvid/test.lst is "test", scenes 0:100 are "0-100".
    """
    test = config.TEST
    parts = [Path(config.DATASET.TEST_SET).stem.replace(":", "-")]
    parts += [Path(test.MODEL_FILE).stem] if test.MODEL_FILE else []
    parts += ["flip"] if test.FLIP_TEST else []
    parts += ["scales"] if len(test.SCALES) > 1 else []
    parts += ["slide"] if test.SLIDE else []
    return "_".join(parts)


class PictureWriter:
    """Writes overlays of evenly spaced images, and submission files of all, during evaluation."""

    def __init__(self, config: CfgNode, dataset: SceneDataset, folder: Path, name: str) -> None:
        wanted = min(config.TEST.OVERLAYS, len(dataset))
        self.chosen = set(np.linspace(0, len(dataset) - 1, wanted).round().astype(int).tolist())
        self.dataset, self.meta = dataset, dataset.meta
        self.encoding = config.DATASET.LABELS
        self.seen = self.written = 0
        self.overlays = folder / f"overlays_{name}"
        submit = config.TEST.SUBMISSION or not dataset.labelled
        self.submission = folder / f"submission_{name}" if submit else None

    def __call__(self, batch: dict[str, Any], prediction: Tensor) -> None:
        classes = prediction.to(torch.uint8).cpu().numpy()
        for index, name in enumerate(batch["name"]):
            stem = Path(name).stem
            if self.seen in self.chosen:
                scene = self.dataset.load(self.seen)
                maps = [m for m in (scene.label, classes[index]) if m is not None]
                picture = side_by_side(scene.image, [self.meta.colorize(m) for m in maps])
                write_png(self.overlays / f"{stem}.png", picture)
            if self.submission is not None:
                answer = self.meta.decode(classes[index], self.encoding)
                write_png(self.submission / f"{stem}.png", answer)
                self.written += 1
            self.seen += 1

    def report(self) -> str:
        """Where the pictures are."""
        text = f"{len(self.chosen)} in {self.overlays}"
        if self.submission is not None:
            text += f"; {self.written} submission files in {self.submission}"
        return text


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Score weights on the test list of a configuration.",
        epilog="Every key of configs/defaults.py can follow as KEY VALUE.",
    )
    return parse_arguments(parser)


if __name__ == "__main__":
    _init_paths.run_main(main)
