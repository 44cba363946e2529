"""From a configuration to objects: the place where configs, datasets, models and utils meet."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from manifest import check_digest, where_to_get
from yacs.config import CfgNode

from datasets import (
    DataError,
    DatasetMeta,
    DeviceLoader,
    EpochBatchSampler,
    EvalTransform,
    SceneDataset,
    SegmentationDataset,
    TrainTransform,
    get_meta,
    make_cache,
    make_loader,
)
from datasets.synthetic import SyntheticScenes
from models import SegModel, build_model, fuse
from models.weights import load_weights, read_checkpoint
from utils.checkpoint import FORMAT, check_belongs
from utils.criterion import SegCriterion
from utils.deploy import Deployment, Prepared, choose_runtime, prepare_for_inference
from utils.errors import InputError
from utils.query_criterion import QueryCriterion
from utils.run_state import Precision

Criterion = SegCriterion | QueryCriterion


def count(number: int, thing: str) -> str:
    """`1 step`, `2 steps`, `2 processes`."""
    ending = "" if number == 1 else "es" if thing.endswith("s") else "s"
    return f"{number} {thing}{ending}"


def build_dataset(config: CfgNode, *, train: bool, need_boundary: bool = False) -> SceneDataset:
    """The training or the test set of `config`, with the transform that belongs to it.

    Cache and substitutes for unreadable images are for training: a score counts every image.
    """
    meta = get_meta(config.DATASET.DATASET)
    t = config.TRAIN
    transform: Any = build_eval_transform(config)
    if train:
        transform = TrainTransform(
            crop_size=t.IMAGE_SIZE[::-1],
            scale_range=t.SCALE_RANGE,
            scale_step=t.SCALE_STEP,
            base_size=t.BASE_SIZE,
            short_side=t.SHORT_SIDE,
            scale_log=t.SCALE_LOG,
            flip=t.FLIP,
            color=t.COLOR,
            cat_max_ratio=t.CAT_MAX_RATIO,
            cutmix=t.CUTMIX,
            pad_value=t.PAD_VALUE,
            boundary=need_boundary,
            ignore_label=meta.ignore_label,
        )
    key = "TRAIN_SET" if train else "TEST_SET"
    name = config.DATASET[key]
    if meta.name == "synthetic":
        first, last = scene_range(name, f"DATASET.{key}")
        dataset = SyntheticScenes(
            first, last, config.DATASET.SIZE[::-1], transform=transform, need_boundary=need_boundary
        )
        if config.DATASET.CACHE == "disk":
            raise InputError("DATASET.CACHE disk is for files; synthetic scenes can use ram")
    else:
        dataset = SegmentationDataset(
            config.DATASET.ROOT,
            name,
            meta,
            encoding=config.DATASET.LABELS,
            transform=transform,
            need_boundary=need_boundary,
            skip_unreadable=train and config.DATASET.ON_ERROR == "skip",
            repeats=train and config.DATASET.REPEATED_LINES,
        )
    return dataset


def build_eval_transform(config: CfgNode) -> EvalTransform:
    """From an image to what the network of `config` is given of it when it is scored."""
    test = config.TEST
    return EvalTransform(
        short_side=test.SHORT_SIDE, long_side=test.LONG_SIDE, divisor=test.SIZE_DIVISOR
    )


def build_train_loader(
    config: CfgNode,
    dataset: SceneDataset,
    sampler: EpochBatchSampler,
    device: torch.device,
    workers: int,
) -> tuple[Iterable[dict[str, Any]], str]:
    """The training batches of `config`, and one line about where they come from."""
    d = config.DATASET
    folder = d.CACHE_DIR or Path(config.OUTPUT_DIR) / "cache"
    cache = "" if d.CACHE == "none" else f", cache {d.CACHE} of at most {d.CACHE_GB:g} GB"

    def cached() -> SceneDataset:
        return dataset.with_cache(make_cache(d.CACHE, len(dataset), d.CACHE_GB, folder))

    helpers = {0: "images loaded by the training process", 1: "1 loader process"}
    loading = helpers.get(workers, f"{workers} loader processes") + cache
    if config.TRAIN.AUGMENT_ON == "cpu":
        loader = make_loader(cached(), batch_sampler=sampler, workers=workers)
        return loader, f"augmentation on the CPU, {loading}"
    source = cached() if d.CACHE == "disk" else dataset  # what is decoded serves the next run too
    loader = DeviceLoader(source, sampler, device, limit=d.CACHE_GB, workers=workers)
    if loader.resident is not None:
        size = loader.resident.bytes / 1e9
        return loader, f"augmentation on {device}, all images kept there ({size:.2f} GB)"
    if d.CACHE == "ram":
        loader = DeviceLoader(cached(), sampler, device, limit=0, workers=workers)
    return loader, (
        f"augmentation on {device}, which has no room for all images (DATASET.CACHE_GB "
        f"{d.CACHE_GB:g}); {loading}"
    )


def unused_weights(config: CfgNode, meta: DatasetMeta) -> list[str]:
    """A sentence where class weights of one's own are switched off, for example by a recipe."""
    kind = config.DATASET.CLASS_WEIGHTS
    if not meta.origin or meta.class_weights is None or kind == "published":
        return []
    often = " (many recipes set it so)" if kind == "none" else ""
    return [
        f"class_weights of {meta.origin} are not used, since DATASET.CLASS_WEIGHTS is {kind}"
        f"{often}; with DATASET.CLASS_WEIGHTS published they are"
    ]


def list_name(config: CfgNode, key: str) -> str:
    """How sentences name the list of `key`, TRAIN_SET or TEST_SET."""
    drawn = config.DATASET.DATASET == "synthetic"
    return f"scenes {config.DATASET[key]}" if drawn else config.DATASET[key]


def scene_range(text: str, key: str) -> tuple[int, int]:
    """First and last (exclusive) index of the synthetic scenes that `text` names."""
    first, _, last = text.partition(":")
    if not (first.isdecimal() and last.isdecimal() and int(first) < int(last)):
        raise InputError(
            f'{key} is {text!r}; synthetic scenes are named as "first:last", such as "0:800"'
        )
    return int(first), int(last)


def build_network(config: CfgNode, meta: DatasetMeta) -> SegModel:
    """The network of `config` with as many classes as the dataset has names."""
    return build_model(config.MODEL.NAME, meta.num_classes, **config.MODEL.OPTIONS)


def held_out_list(config: CfgNode, train_set: SceneDataset, test_set: SceneDataset) -> str | None:
    """DATASET.TEST_SET for a final score: `test.lst` beside the list that training scores.

    None where there is none, or where it holds images of the training list or just those scored.
    """
    if not isinstance(test_set, SegmentationDataset):
        return None
    name = Path(config.DATASET.TEST_SET).with_name("test.lst").as_posix()
    try:
        held_out = SegmentationDataset(
            test_set.root, name, test_set.meta, test_set.encoding, transform=test_set.transform
        )
    except (FileNotFoundError, DataError):
        return None
    test, train, scored = (
        {entry.image for entry in dataset.entries} for dataset in (held_out, train_set, test_set)
    )
    usable = held_out.labelled and (held_out.folder / held_out.name(0)).is_file()
    return name if usable and test != scored and not test & train else None


def require_weights(path: str | Path, key: str, hint: str = "") -> None:
    """Raise if the weight file that the setting `key` names is absent or not the published one.

    `hint` says how to get an absent file, if not from where it is published.
    """
    if Path(path).is_dir():
        raise FileNotFoundError(f"{key} {path} is a folder; name a file in it, such as best.pt")
    if not Path(path).is_file():
        last = Path(path).with_name("last.pt")
        if Path(path).name == "best.pt" and last.is_file():
            hint = f"; there is {last} of a run without a scored epoch: set {key} {last}"
        raise FileNotFoundError(f"{key} {path} does not exist{hint or where_to_get(path)}")
    check_digest(path)


def load_into(
    model: SegModel,
    path: str | Path,
    meta: DatasetMeta,
    reset: tuple[str, ...] = (),
    *,
    key: str = "",
    inference: bool = False,
) -> str:
    """Fill `model` from a weight file after checking that the file belongs to model and dataset.

    Returns the one-line report of `load_weights`. `key` is the setting that named the file;
    `inference` as there.
    """
    require_weights(path, key)
    checkpoint = read_checkpoint(path)
    facts = checkpoint.facts
    ours = facts.get("format") == FORMAT and facts.keys() >= {"dataset", "class_names", "options"}
    if ours and facts.get("architecture") == model.architecture and not reset:
        check_belongs(
            facts, path, dataset=meta.name, class_names=meta.class_names, options=model.options
        )
    return load_weights(model, checkpoint, reset, inference=inference)


def build_criterion(config: CfgNode, model: SegModel, meta: DatasetMeta) -> Criterion:
    """The loss of `config` for the outputs that `model` has. Raises ValueError without one."""
    loss = config.LOSS
    aux_weights = loss.AUX_WEIGHTS or (0.4,) * model.num_aux
    if len(aux_weights) != model.num_aux:
        raise InputError(
            f"LOSS.AUX_WEIGHTS is {aux_weights}; {config.MODEL.NAME} has {model.num_aux} "
            "auxiliary outputs and needs one weight for each"
        )
    # Those that are counted come later, see `weighing`: nothing is read before all is checked.
    weights = {"published": meta.class_weights, "enet": (1.0,) * meta.num_classes}
    class_weights = weights.get(config.DATASET.CLASS_WEIGHTS)
    if model.learns_by == "queries":
        check_query_loss(config)
        return QueryCriterion(
            meta.num_classes, class_weights=class_weights, ignore_label=meta.ignore_label
        )
    return SegCriterion(
        loss.NAME,
        class_weights=class_weights,
        ignore_label=meta.ignore_label,
        ohem_threshold=loss.OHEM_THRESHOLD,
        ohem_min_kept=loss.OHEM_MIN_KEPT,
        aux_weights=aux_weights,
        aux=loss.AUX_NAME,
        aux_average="all" if loss.AUX_OVER_ALL_PIXELS else "valid",
        boundary_weight=loss.BOUNDARY_WEIGHT if model.has_boundary else 0.0,
        boundary_aware_weight=loss.BOUNDARY_AWARE_WEIGHT if model.has_boundary else 0.0,
        align_corners=model.align_corners,
        label_smoothing=loss.LABEL_SMOOTHING,
        dice_weight=loss.DICE,
        lovasz_weight=loss.LOVASZ,
    )


def check_query_loss(config: CfgNode) -> None:
    """Raise ValueError where the configuration asks for a loss of pixels, but queries learn."""
    for name, needed in (("NAME", "ce"), ("DICE", 0.0), ("LOVASZ", 0.0), ("LABEL_SMOOTHING", 0.0)):
        if config.LOSS[name] != needed:
            raise InputError(
                f"LOSS.{name} is {config.LOSS[name]}; {config.MODEL.NAME} learns by the classes "
                f"and masks of its queries, not by single pixels, and needs LOSS.{name} {needed}"
            )


def check_runtime(config: CfgNode, device: torch.device) -> str:
    """What TEST.PRECISION stands for on `device`. Raises ValueError where this machine has not got
    it, or not TEST.RUNTIME."""
    precision = Precision.choose(config.TEST.PRECISION, device, "TEST.PRECISION").name
    try:
        choose_runtime(config.TEST.RUNTIME, device, precision, announced=False)
    except InputError as error:
        raise InputError(f"TEST.RUNTIME {config.TEST.RUNTIME}: {error}") from error
    return precision


def prepare(model: SegModel, config: CfgNode, device: torch.device) -> tuple[Prepared, Deployment]:
    """The form of `model` in which it is scored, a copy: folded, in the precision and by the
    runtime of the configuration. Raises ValueError as `check_runtime`."""
    precision, runtime = check_runtime(config, device), config.TEST.RUNTIME
    return prepare_for_inference(fuse(model), device=device, precision=precision, runtime=runtime)


def view_options(config: CfgNode, training: bool = False) -> dict[str, Any]:
    """Arguments of `predict_logits` that the configuration asks for.

    While `training`, several views per image are for TRAIN.EVAL_AS_TEST only.
    """
    test = config.TEST
    views: dict[str, Any] = {"pad": test.PAD}
    if not training or config.TRAIN.EVAL_AS_TEST:
        views |= {"flip": test.FLIP_TEST, "scales": test.SCALES}
    if test.SLIDE:
        width, height = test.SLIDE
        step_x, step_y = test.STRIDE or (max(1, 2 * width // 3), max(1, 2 * height // 3))
        views |= {"mode": "slide", "crop_size": (height, width), "stride": (step_y, step_x)}
    return views
