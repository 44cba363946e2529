"""Train the network of a configuration.

    python tools/train.py --cfg configs/camvid/rtlinearformer_slim_camvid_360x480.yaml \
        DATASET.ROOT data/ TRAIN.BATCH_SIZE_PER_GPU 8

One process per entry of GPUS; several hosts by `torchrun ... tools/train.py ...`. The run folder
OUTPUT_DIR/<dataset>/<config stem>/ then holds config.yaml, log.txt, metrics.jsonl, curve.png,
last.pt and best.pt. Ctrl-C or SIGTERM saves and ends; TRAIN.RESUME True goes on from there.
"""

import argparse
import datetime
import functools
import shlex
import signal
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import _init_paths
import torch
from builders import (
    build_criterion,
    build_dataset,
    build_network,
    build_train_loader,
    held_out_list,
    list_name,
    load_into,
    require_weights,
    unused_weights,
)
from checks import (
    advice,
    batch_parts,
    check_batch_norm,
    check_folder,
    check_test_batch,
    count,
    refuse_changes,
    steps_in_epoch,
)

from configs import get_config
from configs.arguments import config_words, parse_arguments
from configs.loader import changed_keys, run_folder
from datasets import EpochBatchSampler, get_meta, make_loader, quick_check
from models.weights import read_checkpoint
from utils.checkpoint import (
    keep_earlier_run,
    random_state,
    read_resumable,
    require_room,
    restore_optimizer,
    restore_random_state,
    save_checkpoint,
)
from utils.distributed import (
    check_gpus,
    end_world,
    init_world,
    is_launched,
    launch,
    set_backends,
    share_cores,
    synchronise_norms,
    wait_for_all,
    world_size,
)
from utils.engine import TrainForm, evaluate, train_one_epoch
from utils.logger import RunLog
from utils.metrics import ConfusionMatrix
from utils.optim import build_optimizer, learning_rate
from utils.records import atomic_write
from utils.run_state import Precision, Progress, StopRequest
from utils.visualize import plot_curve


def main() -> int:
    args = parse_args()
    config = get_config(args.cfg, args.opts)
    check_gpus(config.GPUS)
    set_backends(
        seed=config.SEED,
        tf32=config.TF32,
        benchmark=config.CUDNN_BENCHMARK,
        deterministic=config.CUDNN_DETERMINISTIC,
    )
    folder = run_folder(config, args.cfg)
    t, scored = config.TRAIN, list_name(config, "TEST_SET")

    # what can be refused is refused before processes are started or anything is written
    if config.MODEL.PRETRAINED:
        require_weights(config.MODEL.PRETRAINED, "MODEL.PRETRAINED")
    check_folder(folder, "OUTPUT_DIR")
    meta = get_meta(config.DATASET.DATASET)
    model = build_network(config, meta)
    criterion = build_criterion(config, model, meta)
    train_set = build_dataset(config, train=True, need_boundary=model.has_boundary)
    test_set = build_dataset(config, train=False)
    remarks = [*quick_check(train_set), *quick_check(test_set), *unused_weights(config, meta)]
    if not test_set.labelled:
        raise ValueError(
            f"DATASET.TEST_SET {config.DATASET.TEST_SET} names no labels; training scores every "
            "epoch on it and needs image<TAB>label"
        )
    check_test_batch(config, test_set)
    processes = world_size(config.GPUS)
    steps_per_epoch, batch = steps_in_epoch(config, len(train_set), processes)
    check_batch_norm(config, meta, processes)
    report = "random initialisation"
    saved, weights = None, config.MODEL.PRETRAINED
    if t.RESUME and (folder / "last.pt").exists():
        saved = read_resumable(
            folder / "last.pt", read_checkpoint, model.architecture, meta.class_names
        )
        refuse_changes(config, saved["config"], folder / "last.pt")
    elif weights:
        report = load_into(model, weights, meta, config.MODEL.RESET, key="MODEL.PRETRAINED")
    if len(config.GPUS) > 1 and not is_launched():
        return launch(len(config.GPUS))
    world = init_world(config.GPUS)
    precision = Precision.choose(t.PRECISION, world.device)

    # data
    workers = share_cores(config.WORKERS, world)
    sampler = EpochBatchSampler(
        len(train_set),
        t.BATCH_SIZE_PER_GPU,
        seed=config.SEED,
        rank=world.rank,
        world_size=world.size,
    )
    train_loader, feeding = build_train_loader(config, train_set, sampler, world.device, workers)
    test_loader = make_loader(
        test_set,
        batch_size=config.TEST.BATCH_SIZE_PER_GPU,
        indices=range(world.rank, len(test_set), world.size),
        workers=workers,
    )

    # what is learnt, and how
    criterion.to(world.device)
    scaler = precision.scaler()
    layout = torch.channels_last if t.CHANNELS_LAST else torch.contiguous_format
    model.to(world.device, memory_format=layout)
    if t.SYNC_BN:
        synchronise_norms(model, world)
    optimizer = build_optimizer(
        model,
        t.OPTIMIZER,
        lr=t.LR,
        weight_decay=t.WD,
        momentum=t.MOMENTUM,
        decay_norms=t.WD_ON_NORM,
        lr_multipliers=model.lr_multipliers,
    )
    lr_of_step = functools.partial(
        learning_rate,
        total_steps=t.END_EPOCH * steps_per_epoch,
        base_lr=t.LR,
        end_lr=t.END_LR,
        power=t.POWER,
        warmup_steps=t.WARMUP_STEPS,
        warmup_lr=t.WARMUP_LR,
    )
    progress = Progress()
    torch.manual_seed(config.SEED + world.rank)
    if saved is not None:
        model.load_state_dict(saved["model"])
        restore_optimizer(optimizer, saved["optimizer"])
        if saved["scaler"] and scaler.is_enabled():
            scaler.load_state_dict(saved["scaler"])
        progress = Progress(**saved["progress"])
        same = restore_random_state(saved["random"], world) and saved["batch"] == batch
        if not same or saved["steps_per_epoch"] != steps_per_epoch:
            progress.restart_epoch()
        changed = changed_keys(config, saved["config"])
        changed.pop("TRAIN.RESUME", None)
        report = f"resumed after epoch {progress.epoch}, step {progress.step_in_epoch}"
        report += "".join(f"; {key} {then} -> {now}" for key, (then, now) in changed.items())

    # where the run stands; from here on Ctrl-C and SIGTERM wait for the end of a step
    if world.is_main:
        require_room(folder, model, optimizer)
    stop = StopRequest()
    wait_for_all(world)
    aside = keep_earlier_run(folder) if world.is_main and saved is None else None
    log = RunLog(folder, enabled=world.is_main)
    if config.GPUS and world.device.type == "cpu":
        log.info("GPUS 0: there is no CUDA device on this machine; training on the CPU")
    for remark in remarks:
        log.info(f"warning: {remark}")
    if aside is not None:
        log.info(f"an earlier run was in {folder}; it is kept as {aside}")
    if t.RESUME and saved is None:
        log.info(f"TRAIN.RESUME: there is no {folder / 'last.pt'}; starting anew")
    if saved is not None:
        log.forget_after(progress.epoch)
    train_form = TrainForm(model)
    if world.size > 1:
        devices = [world.device] if world.device.type == "cuda" else None
        train_form = torch.nn.parallel.DistributedDataParallel(train_form, device_ids=devices)
    if world.is_main:
        atomic_write(folder / "config.yaml", config.dump())
    for line in (
        f"{model.architecture}, {sum(p.numel() for p in model.parameters()):,} parameters, "
        f"{meta.num_classes} classes; {report}",
        f"{meta.name}: {count(len(train_set), 'image')} of {list_name(config, 'TRAIN_SET')} to "
        f"train on, {len(test_set)} of {scored} to score",
        f"{count(world.size, 'process')} on {world.device}, {precision.name}; batch {batch} "
        f"({batch_parts(config, world.size)}); {count(t.END_EPOCH, 'epoch')} of "
        f"{count(steps_per_epoch, 'step')}",
        feeding,
        *advice(config, steps_per_epoch, lr_of_step(t.END_EPOCH * steps_per_epoch - 1)),
    ):
        log.info(line)

    def save(*names: str) -> None:
        generators = random_state(world)
        if not world.is_main:
            return
        content = {
            "architecture": model.architecture,
            "options": dict(config.MODEL.OPTIONS),
            "dataset": meta.name,
            "class_names": list(meta.class_names),
            "palette": [list(color) for color in meta.palette],
            "config": config.dump(),
            "progress": asdict(progress),
            "model": model.state_dict(),
        }
        training = {
            "steps_per_epoch": steps_per_epoch,
            "batch": batch,
            "optimizer": optimizer.state_dict(),
            "scaler": scaler.state_dict(),
            "random": generators,
        }
        for name in names:
            save_checkpoint(folder / name, content | (training if name == "last.pt" else {}))

    while progress.epoch < t.END_EPOCH:
        epoch = progress.epoch + 1
        sampler.set_epoch(progress.epoch, start_batch=progress.step_in_epoch * t.ACCUMULATE)
        finished = train_one_epoch(
            train_form,
            criterion,
            train_loader,
            optimizer,
            world=world,
            precision=precision,
            scaler=scaler,
            progress=progress,
            steps_per_epoch=steps_per_epoch,
            lr_of_step=lr_of_step,
            log=log,
            stop=stop,
            accumulate=t.ACCUMULATE,
            clip_grad=t.CLIP_GRAD,
        )
        due = epoch % t.EVAL_EVERY == 0 or epoch == t.END_EPOCH
        result: dict[str, Any] = {}
        if finished and due:
            confusion = ConfusionMatrix(
                meta.num_classes, meta.class_names, meta.ignore_label, world.device
            )
            began = time.perf_counter()
            finished = evaluate(
                model, test_loader, confusion, world=world, stop=stop, pad=config.TEST.PAD
            )
            result = scores(confusion) | {"eval_seconds": time.perf_counter() - began}
        if not finished:
            save("last.pt")
            log.info(
                f"stopped in epoch {epoch} after step {progress.step_in_epoch}; saved. Go on: the "
                "same command with TRAIN.RESUME True"
            )
            log.close()
            end_world()
            return 128 + (stop.signal or signal.SIGTERM)
        is_best = result.get("miou") is not None and result["miou"] > progress.best_miou
        if is_best:
            progress.best_miou, progress.best_epoch = result["miou"], epoch
        record = {
            "epoch": epoch,
            "step": epoch * steps_per_epoch,
            **progress.means(),
            "lr": lr_of_step(epoch * steps_per_epoch - 1),
            "seconds": progress.seconds,
            "images_per_second": batch * steps_per_epoch / max(progress.seconds, 1e-9),
            "skipped": progress.skipped,
            "unreadable": progress.unreadable,
            **result,
        }
        log.metrics(record)
        if result:
            log.info(confusion.table())
        log.info(epoch_line(record, t.END_EPOCH, progress, Path(scored).name))
        cache = train_loader.dataset.cache
        if cache is not None and epoch == 1:
            scenes, size = cache.usage()
            log.info(f"cache: {scenes} of {len(train_set)} images, {size / 1e9:.2f} GB")
        progress.end_epoch()
        save(*(["best.pt"] if is_best else []), "last.pt")  # last.pt tells of no best.pt to come
        if world.is_main:
            plot_curve(log.metrics_file, folder / "curve.png", scored)
    if progress.best_epoch:
        best = f"{100 * progress.best_miou:.2f} after epoch {progress.best_epoch}"
        log.info(f"best mIoU on {Path(scored).name} {best}: {folder / 'best.pt'}")
    again = ["python", "tools/eval.py", *config_words(args)]
    log.info(f"run folder {folder}")
    log.info(f"score every class of {scored}, with pictures: {shlex.join(again)}")
    if held_out := held_out_list(config, train_set, test_set):
        again += ["DATASET.TEST_SET", held_out]
        log.info(f"score {held_out}, by which no epoch was chosen: {shlex.join(again)}")
    log.close()
    end_world()
    return 0


def scores(confusion: ConfusionMatrix) -> dict[str, Any]:
    """What metrics.jsonl keeps of an evaluation; fractions in 0..1, None where undefined."""
    full = confusion.to_dict()
    return {
        "miou": full["mIoU"],
        "pixel_accuracy": full["pixel_accuracy"],
        "mean_accuracy": full["mean_accuracy"],
        "iou": {name: values["IoU"] for name, values in full["classes"].items()},
    }


def epoch_line(record: dict[str, Any], epochs: int, progress: Progress, scored: str) -> str:
    """One line of the log about an epoch, with the time that the rest will take.

    `scored` names the list behind the mIoU.
    """
    loss = "-" if record["loss"] is None else f"{record['loss']:.4f}"
    line = f"epoch {record['epoch']}/{epochs} loss {loss}"
    if record.get("miou") is not None:
        best = 100 * progress.best_miou
        line += f" mIoU on {scored} {100 * record['miou']:.2f} (best {best:.2f})"
    if record["skipped"]:
        line += f" skipped {record['skipped']}"
    if record["unreadable"]:
        line += f" unreadable {record['unreadable']}"
    left = (epochs - record["epoch"]) * (record["seconds"] + record.get("eval_seconds", 0.0))
    eta = datetime.timedelta(seconds=round(left))
    return f"{line} {record['images_per_second']:.1f} images/s, {eta} left"


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Train the network of a configuration.",
        epilog="Every key of configs/defaults.py can follow as KEY VALUE.",
    )
    parser.add_argument("--seed", type=int, help="replaces SEED")
    args = parse_arguments(parser)
    if args.seed is not None:
        args.opts += ["SEED", str(args.seed)]
    return args


if __name__ == "__main__":
    _init_paths.run_main(main)
