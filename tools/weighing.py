"""DATASET.CLASS_WEIGHTS enet: weights by how many pixels each class has in the training labels."""

import json
from pathlib import Path

from training import Job

from datasets import DataError, count_pixels, enet_weights, fingerprint
from utils.distributed import World, share_object
from utils.errors import InputError
from utils.records import write_json


def weigh_classes(job: Job, world: World) -> None:
    """Give the loss of `job` its counted weights where the configuration asks for them.

    The first process counts; what it finds is kept beside the cache of decoded images and serves
    later runs on the same labels.

    Raises:
        ValueError: a label that cannot be read, or no labelled pixel at all.
    """
    if job.config.DATASET.CLASS_WEIGHTS != "enet":
        return
    pixels, origin, problem = None, "", None
    if world.is_main:
        try:
            pixels, origin = _pixels(job)
        except (DataError, OSError) as error:
            problem = error
    failed, pixels, origin = share_object((problem is not None, pixels, origin), world)
    if problem is not None:
        raise problem
    if failed:
        raise SystemExit(2)
    if not sum(pixels):
        raise InputError(
            f"DATASET.CLASS_WEIGHTS enet: no pixel of DATASET.TRAIN_SET "
            f"{job.config.DATASET.TRAIN_SET} is labelled"
        )
    weights = enet_weights(pixels)
    job.criterion.weigh_classes(weights)
    parts = ", ".join(
        f"{name} {weight:.2f} ({count / sum(pixels):.2%})"
        for name, weight, count in zip(job.meta.class_names, weights, pixels, strict=True)
    )
    job.class_weights = f"class weights enet (share of the labelled pixels, {origin}): {parts}"


def _pixels(job: Job) -> tuple[list[int], str]:
    """Pixels of every class in the training labels, and where the numbers come from."""
    d = job.config.DATASET
    folder = Path(d.CACHE_DIR or Path(job.config.OUTPUT_DIR) / "cache")
    try:
        path = folder / f"{fingerprint(job.train_set)}.pixels.json"
    except OSError as error:  # a file is gone, which may be one to skip
        if not job.train_set.skip_unreadable:
            raise DataError(f"DATASET.CLASS_WEIGHTS enet: {error}") from None
        return count_pixels(job.train_set, job.config.WORKERS), "counted now"
    try:
        pixels = json.loads(path.read_text(encoding="utf-8"))["pixels"]
        if len(pixels) == job.meta.num_classes and all(type(n) is int and n >= 0 for n in pixels):
            return pixels, f"from {path}"
    except (OSError, ValueError, KeyError, TypeError):  # not counted yet, or not whole
        pass
    pixels = count_pixels(job.train_set, job.config.WORKERS)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(path, {"dataset": job.meta.name, "list": d.TRAIN_SET, "pixels": pixels})
    return pixels, f"counted now, kept as {path}"
