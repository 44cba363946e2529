"""Score weights on the test list of a configuration.

    python tools/eval.py --cfg configs/camvid/rtlinearformer_slim_camvid_360x480.yaml \
        DATASET.ROOT data/ DATASET.TEST_SET list/camvid/test.lst TEST.MODEL_FILE best.pt

Prints a table of every class and `mIoU NN.NN` (percent), and writes into the run folder
eval_<list>.json, eval_<list>.txt, confusion_<list>.png and TEST.OVERLAYS pictures (image, truth,
prediction, errors). Named weights and changed settings follow the list's name, so that evaluations
keep apart. TEST.BOUNDARY True scores outlines too, TEST.PER sequences or folders. Without
TEST.MODEL_FILE it takes best.pt of the run folder. For a list without labels it writes the
predictions as the test server expects them, called as the images are; TEST.SUBMISSION True does so
for any list.
"""

import argparse
import hashlib
import json
import shlex
import sys
from pathlib import Path
from typing import Any

import _init_paths
import numpy as np
import torch
from builders import (
    build_dataset,
    build_network,
    count,
    list_name,
    load_into,
    prepare,
    require_weights,
    view_options,
)
from checks import check_folder, check_test_batch
from manifest import published_score
from measures import Measures
from torch import Tensor
from yacs.config import CfgNode

from configs import get_config
from configs.arguments import parse_arguments
from configs.loader import run_folder
from datasets import SceneDataset, get_meta, make_loader, quick_check
from models import SegModel
from utils.deploy import Deployment
from utils.distributed import check_gpus, init_world, is_launched, set_backends, share_cores
from utils.engine import evaluate
from utils.errors import InputError
from utils.metrics import ConfusionMatrix
from utils.names import distinct_files, file_stem
from utils.records import atomic_write, environment, sha256, write_json
from utils.visualize import error_map, plot_confusion, side_by_side, write_png

# Settings of TEST that change no score.
NO_SCORING = ("MODEL_FILE", "BATCH_SIZE_PER_GPU", "OVERLAYS", "SUBMISSION", "BOUNDARY", "PER")
# What a record says of an evaluation that the same evaluation, run again, would say.
IDENTITY = (
    "architecture dataset root test_set labels size weights views resize precision runtime".split()
)


def main() -> int:
    args = parse_args()
    config = get_config(args.cfg, args.opts)
    check_gpus(config.GPUS)
    if is_launched():
        raise InputError("tools/eval.py runs as one process; start it without torchrun")
    views = view_options(config)
    folder = run_folder(config, args.cfg)
    check_folder(folder, "OUTPUT_DIR")
    world = init_world(config.GPUS[:1])
    set_backends(seed=config.SEED, tf32=config.TF32, benchmark=False, deterministic=False)
    meta = get_meta(config.DATASET.DATASET)
    model = build_network(config, meta)
    path = Path(config.TEST.MODEL_FILE or folder / "best.pt")
    hint = "" if config.TEST.MODEL_FILE else "; train first or set TEST.MODEL_FILE"
    require_weights(path, "TEST.MODEL_FILE", hint)
    report = load_into(model, path, meta, key="TEST.MODEL_FILE", inference=True)
    network, deployment = prepare(model, config, world.device)
    dataset = build_dataset(config, train=False)
    remarks = quick_check(dataset)
    check_test_batch(config, dataset)

    for remark in remarks:
        print(f"warning: {remark}")
    print(f"{path}: {report}; {deployment}")
    print(f"scoring {count(len(dataset), 'image')} of {list_name(config, 'TEST_SET')}")
    loader = make_loader(
        dataset,
        batch_size=config.TEST.BATCH_SIZE_PER_GPU,
        workers=share_cores(config.WORKERS, world),
    )
    record = describe(args, config, model, dataset, path, views, deployment)
    name = record_name(config, get_config(args.cfg), folder)
    name = name_of_its_own(folder, name, record)
    writer, measures = PictureWriter(config, dataset, folder, name), Measures(config, dataset)

    def on_batch(batch: dict[str, Any], prediction: Tensor) -> None:
        writer(batch, prediction)
        measures(batch, prediction)

    confusion = evaluate(
        {"": network},
        loader,
        lambda: ConfusionMatrix(
            meta.num_classes, meta.class_names, meta.ignore_label, world.device
        ),
        world=world,
        on_batch=on_batch,
        **views,
    )[""]

    record["remarks"] = list(network.remarks)
    for remark in network.remarks:
        print(remark)
    if dataset.labelled:
        table = confusion.table() + "\n\n" + confusion.summary()
        table = "\n".join(filter(None, (table, measures.text())))
        atomic_write(folder / f"eval_{name}.txt", table + "\n")
        record["scores"] = confusion.to_dict() | measures.record()
        if config.TEST.OVERLAYS:
            counts, listed = confusion.matrix.cpu().numpy(), list_name(config, "TEST_SET")
            plot_confusion(counts, meta.class_names, folder / f"confusion_{name}.png", listed)
        print(table)
        if published := published_score(path):
            print(published)
    else:
        print("the list names no labels, so there is no score")
    write_json(folder / f"eval_{name}.json", record)
    print(f"record {folder / f'eval_{name}.json'}; pictures {writer.report()}")
    return 0


def describe(
    args: argparse.Namespace,
    config: CfgNode,
    model: SegModel,
    dataset: SceneDataset,
    weights: Path,
    views: dict[str, Any],
    deployment: Deployment,
) -> dict[str, Any]:
    """What a record says beside the scores."""
    return {
        "command": ["python", "tools/eval.py", *sys.argv[1:]],
        "config": shlex.join(args.cfg),
        "architecture": model.architecture,
        "images": len(dataset),
        "weights": str(weights),
        "weights_sha256": sha256(weights),
        **conditions(config, views, deployment),
        "environment": environment(torch.device(deployment.device)),
    }


def conditions(config: CfgNode, views: dict[str, Any], deployment: Deployment) -> dict[str, Any]:
    """What an evaluation is of, beside the weights, as its record states it."""
    data, test = config.DATASET, config.TEST
    size = {"size": list(data.SIZE)} if data.DATASET == "synthetic" else {}
    return {
        "dataset": get_meta(data.DATASET).name,
        "root": data.ROOT,
        "test_set": data.TEST_SET,
        "labels": data.LABELS,
        **size,
        "views": {key: list(v) if isinstance(v, tuple) else v for key, v in views.items()},
        "resize": {
            "short_side": test.SHORT_SIDE,
            "long_side": test.LONG_SIDE,
            "size_divisor": test.SIZE_DIVISOR,
        },
        "precision": deployment.precision,
        "runtime": deployment.runtime,
    }


def record_name(config: CfgNode, plain: CfgNode, folder: Path) -> str:
    """What tells this evaluation's files from others'.

    list/camvid/test.lst is "test", scenes 0:100 are "0-100". Weights follow if they are named, then
    every setting that changes scores and differs from `plain`, the configuration as its file states
    it: "test_last_flip_test_scales-0.75-1". Lists and weights that lie elsewhere than usual bring
    the names of their folders along.
    """
    listed, weights = Path(config.DATASET.TEST_SET), Path(config.TEST.MODEL_FILE)
    usual = (Path(), Path("list") / Path(config.DATASET.DATASET).stem)
    parts = ["-".join((*(() if listed.parent in usual else listed.parts[-3:-1]), listed.stem))]
    if config.TEST.MODEL_FILE:
        at_home = weights.parent.resolve() == folder.resolve()
        where = () if at_home else weights.absolute().parts[-2:-1]
        parts.append("-".join((*where, weights.name.removesuffix(".pt"))))
    keys = [("TEST", key) for key in config.TEST if key not in NO_SCORING]
    for section, key in (*keys, ("DATASET", "LABELS")):
        value = config[section][key]
        if value != plain[section][key]:
            parts.append(_setting(key.lower(), value))
    return file_stem("_".join(parts))


def _setting(key: str, value: Any) -> str:
    """Scales (0.5, 1.0) are "scales-0.5-1", pad True is "pad", slide () is "no_slide"."""
    if not value or value is True:
        return key if value else f"no_{key}"
    values = value if isinstance(value, tuple) else (value,)
    return "-".join([key, *(f"{v:g}" if isinstance(v, float) else str(v) for v in values)])


def name_of_its_own(folder: Path, name: str, record: dict[str, Any]) -> str:
    """`name`; where another evaluation's record is called so, with a digest of this one."""
    path = folder / f"eval_{name}.json"
    try:
        earlier = _identity(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return name
    except (ValueError, AttributeError):
        earlier = {"dataset": None}  # not a record of this program: it stays as it is
    this = _identity(record)
    if all(earlier.get(key, value) == value for key, value in this.items()):
        return name
    return f"{name}_{hashlib.sha256(json.dumps(this).encode()).hexdigest()[:8]}"


def _identity(record: dict[str, Any]) -> dict[str, Any]:
    facts = {key: record[key] for key in IDENTITY if record.get(key) is not None}
    places = {key: str(Path(facts[key]).resolve()) for key in ("root", "weights") if key in facts}
    return facts | places


class PictureWriter:
    """Writes overlays of evenly spaced images, and submission files of all, during evaluation.

    Files are called as their images are; where names repeat within the list, they lie in the
    folders that the list names.
    """

    def __init__(self, config: CfgNode, dataset: SceneDataset, folder: Path, name: str) -> None:
        wanted = min(config.TEST.OVERLAYS, len(dataset))
        self.chosen = set(np.linspace(0, len(dataset) - 1, wanted).round().astype(int).tolist())
        self.dataset, self.meta = dataset, dataset.meta
        self.files = distinct_files([dataset.name(i) for i in range(len(dataset))], ".png")
        self.encoding = config.DATASET.LABELS
        self.seen = self.written = 0
        self.overlays = folder / f"overlays_{name}"
        submit = config.TEST.SUBMISSION or not dataset.labelled
        self.submission = folder / f"submission_{name}" if submit else None

    def __call__(self, batch: dict[str, Any], prediction: Tensor) -> None:
        classes = prediction.to(torch.uint8).cpu().numpy()
        for index in range(len(batch["name"])):
            file = self.files[self.seen]
            if self.seen in self.chosen:
                scene = self.dataset.load(self.seen)
                maps = [m for m in (scene.label, classes[index]) if m is not None]
                panels = [self.meta.colorize(m) for m in maps]
                if scene.label is not None:
                    ignored = self.meta.ignore_label
                    panels.append(error_map(classes[index], scene.label, ignored))
                write_png(self.overlays / file, side_by_side(scene.image, panels))
            if self.submission is not None:
                answer = self.meta.decode(classes[index], self.encoding)
                write_png(self.submission / file, answer)
                self.written += 1
            self.seen += 1

    def report(self) -> str:
        """Where the pictures are."""
        text = f"{len(self.chosen)} in {self.overlays}"
        if self.submission is not None:
            text += f"; {count(self.written, 'submission file')} in {self.submission}"
        if any("/" in file for file in self.files):
            text += "; in the folders of the list, since names repeat"
        return text


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Score weights on the test list of a configuration.",
        epilog="Every key of configs/defaults.py can follow as KEY VALUE.",
    )
    return parse_arguments(parser)


if __name__ == "__main__":
    _init_paths.run_main(main)
