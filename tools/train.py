"""Train the network of a configuration.

    python tools/train.py --cfg configs/camvid/rtlinearformer_slim_camvid_360x480.yaml \
        DATASET.ROOT data/ TRAIN.BATCH_SIZE_PER_GPU 8

One process per entry of GPUS; several hosts by `torchrun ... tools/train.py ...` or Slurm's srun.
The run folder OUTPUT_DIR/<dataset>/<config stem>/ then holds config.yaml, log.txt, metrics.jsonl,
curve.png, last.pt, the one before it (previous.pt) and best.pt. Ctrl-C, SIGTERM, SIGHUP and SIGUSR1
save and end; TRAIN.RESUME True goes on from there, also after a crash.
"""

import argparse
import datetime
import shlex
import time
from pathlib import Path
from typing import Any

import _init_paths
from builders import held_out_list, list_name, prepare, view_options
from probe import probe
from training import (
    Job,
    Loaders,
    build_loaders,
    build_schedule,
    build_step,
    check_job,
    open_folder,
    opening,
    start_run,
)
from weighing import weigh_classes

from configs import get_config
from configs.arguments import config_words, parse_arguments
from configs.loader import run_folder
from utils.checkpoint import save_checkpoint
from utils.distributed import (
    World,
    adopt_scheduler,
    check_gpus,
    end_world,
    init_world,
    is_launched,
    launch,
    set_backends,
    wait_for_all,
)
from utils.engine import evaluate, train_one_epoch
from utils.logger import RunLog
from utils.metrics import ConfusionMatrix
from utils.records import atomic_write
from utils.run_state import Plan, Progress, Run, random_state
from utils.stopping import StopRequest
from utils.visualize import plot_curve


def main() -> int:
    args = parse_args()
    config = get_config(args.cfg, args.opts)
    adopt_scheduler()
    check_gpus(config.GPUS)
    set_backends(
        seed=config.SEED,
        tf32=config.TF32,
        benchmark=config.CUDNN_BENCHMARK,
        deterministic=config.CUDNN_DETERMINISTIC,
    )
    job = check_job(config, run_folder(config, args.cfg))
    if args.probe:
        return probe(job)
    if len(config.GPUS) > 1 and not is_launched():
        del job  # the processes have their own
        return launch(len(config.GPUS))

    world = init_world(config.GPUS)
    loaders = build_loaders(config, job.train_set, job.test_set, world)
    lock = open_folder(job, world)
    weigh_classes(job, world)
    run = start_run(job, world)
    soon = f"within {2 * config.TRAIN.LOG_EVERY} steps (TRAIN.LOG_EVERY)"
    stop = StopRequest(world.is_main, "after this step" if world.size == 1 else soon)
    log = start_log(job, run, loaders, world)
    step = build_step(config, run, job.criterion, world, lambda: bool(stop), log.info)

    while not run.finished:
        loaders.start_at(run, config.TRAIN.CALM)
        if not train_one_epoch(run, step, loaders.train, log, lambda: save(job, run, world)):
            break
        began = time.perf_counter()
        scores = score(job, run, loaders, world, stop)
        if scores is None:
            break
        close_epoch(job, run, scores, time.perf_counter() - began, world, log)
        if run.progress.epoch == 1 and (cached := loaders.cached()):
            log.info(cached)

    if not run.finished:
        save(job, run, world)
        wait_for_all(world)  # else one that ends early has the others killed
    say_end(args, job, run, log)
    log.close()
    end_world()
    del lock
    return 0 if run.finished else stop.status


def start_log(job: Job, run: Run, loaders: Loaders, world: World) -> RunLog:
    """The run's log, with what is to be said before the first step."""
    log = RunLog(job.folder, enabled=world.is_main)
    log.forget_after(run.progress.epoch + run.finished)  # its last epoch may be an open one
    if world.is_main:
        atomic_write(job.folder / "config.yaml", job.config.dump())
    for line in opening(job, run, loaders, world):
        log.info(line)
    return log


def say_end(args: argparse.Namespace, job: Job, run: Run, log: RunLog) -> None:
    """Where the run is left, what it has brought, and the commands that go on from here."""
    progress, scored = run.progress, job.config.DATASET.TEST_SET
    if not run.finished:
        log.info(
            f"stopped in epoch {progress.epoch + 1} after step {progress.step_in_epoch}; saved. Go "
            "on: the same command with TRAIN.RESUME True"
        )
        return
    if progress.best_epoch:
        best = f"{100 * progress.best_miou:.2f} after epoch {progress.best_epoch}"
        log.info(f"best mIoU on {Path(scored).name} {best}: {job.folder / 'best.pt'}")
    again = ["python", "tools/eval.py", *config_words(args)]
    log.info(f"run folder {job.folder}")
    log.info(
        f"score every class of {list_name(job.config, 'TEST_SET')}, with pictures: "
        f"{shlex.join(again)}"
    )
    if held_out := held_out_list(job.config, job.train_set, job.test_set):
        again += ["DATASET.TEST_SET", held_out]
        log.info(f"score {held_out}, by which no epoch was chosen: {shlex.join(again)}")


def save(job: Job, run: Run, world: World, best: bool = False) -> None:
    """Write last.pt, and best.pt before it, so that last.pt tells of no best.pt to come."""
    run.equalise(world)
    generators = random_state(world)
    if not world.is_main:
        return
    if best:
        score = {
            "miou": run.progress.best_miou,
            "epoch": run.progress.best_epoch,
            "list": list_name(job.config, "TEST_SET"),
        }
        save_checkpoint(job.folder / "best.pt", run.weights() | {"score": score})
    save_checkpoint(
        job.folder / "last.pt", run.state(generators), earlier=job.folder / "previous.pt"
    )


def score(
    job: Job, run: Run, loaders: Loaders, world: World, stop: StopRequest
) -> dict[str, ConfusionMatrix] | None:
    """Confusion matrices of the run's networks; {} if this epoch's are not wanted, None if asked
    to stop on the way. What was trained is saved before."""
    config, meta, epoch = job.config, job.meta, run.progress.epoch + 1
    if epoch % config.TRAIN.EVAL_EVERY and not run.plan.ended(run.progress):
        return {}
    if not run.plan.save_every or run.progress.step % run.plan.save_every:
        save(job, run, world)  # else it has just been saved
    return evaluate(
        {name: prepare(n, config, world.device)[0] for name, n in run.networks.items()},
        loaders.test,
        lambda: ConfusionMatrix(
            meta.num_classes, meta.class_names, meta.ignore_label, world.device
        ),
        world=world,
        stop=lambda: bool(stop),
        **view_options(config, training=True),
    )


def close_epoch(
    job: Job,
    run: Run,
    scores: dict[str, ConfusionMatrix],
    seconds: float,
    world: World,
    log: RunLog,
) -> None:
    """Record, say and save what an epoch has brought; scoring took `seconds`, with saving."""
    plan, progress, epoch = run.plan, run.progress, run.progress.epoch + 1
    last = plan.ended(progress)
    confusion = next(iter(scores.values()), None)
    result = {} if confusion is None else summary(confusion)
    is_best = result.get("miou") is not None and result["miou"] > progress.best_miou
    if is_best:
        progress.best_miou, progress.best_epoch = result["miou"], epoch
    record = {
        "epoch": epoch,
        "step": progress.step,
        **progress.means(),
        "lr": build_schedule(job.config, plan)(plan.share(progress, progress.step_in_epoch - 1)),
        "seconds": progress.seconds,
        "trained_seconds": progress.trained,
        "images_per_second": plan.batch * progress.step_in_epoch / max(progress.seconds, 1e-9),
        "skipped": progress.skipped,
        "unreadable": progress.unreadable,
        **result,
        **({"eval_seconds": seconds} if scores else {}),
        **{f"{name}_miou": summary(c)["miou"] for name, c in scores.items() if len(scores) > 1},
    }
    log.metrics(record)
    if confusion is not None and (is_best or last):
        log.info(confusion.table())
    log.info(epoch_line(record, plan, progress, Path(job.config.DATASET.TEST_SET).name))
    run.end_epoch()
    if scores or run.finished or not plan.save_every:
        save(job, run, world, best=is_best)
        if world.is_main:
            scored = list_name(job.config, "TEST_SET")
            plot_curve(log.metrics_file, job.folder / "curve.png", scored)


def summary(confusion: ConfusionMatrix) -> dict[str, Any]:
    """What metrics.jsonl keeps of an evaluation; fractions in 0..1, None where undefined."""
    full = confusion.to_dict()
    return {
        "miou": full["mIoU"],
        "pixel_accuracy": full["pixel_accuracy"],
        "mean_accuracy": full["mean_accuracy"],
        "iou": {name: values["IoU"] for name, values in full["classes"].items()},
    }


def epoch_line(record: dict[str, Any], plan: Plan, progress: Progress, scored: str) -> str:
    """One line of the log about an epoch, with the time that the rest will take.

    `scored` names the list behind the mIoU.
    """
    loss = "-" if record["loss"] is None else f"{record['loss']:.4f}"
    line = f"{plan.describe(record['epoch'])} loss {loss}"
    if record.get("miou") is not None:
        best = 100 * progress.best_miou
        line += f" mIoU on {scored} {100 * record['miou']:.2f} (best {best:.2f})"
    if record["skipped"]:
        line += f" skipped {record['skipped']}"
    if record["unreadable"]:
        line += f" unreadable {record['unreadable']}"
    left = max(0, plan.steps - plan.position(progress)) / plan.steps_per_epoch
    left *= record["seconds"] + record.get("eval_seconds", 0.0)
    if plan.seconds:
        left = max(0.0, plan.seconds - progress.trained)  # scoring comes on top
    eta = datetime.timedelta(seconds=round(left))
    return f"{line} {record['images_per_second']:.1f} images/s, {eta} left"


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Train the network of a configuration.",
        epilog="Every key of configs/defaults.py can follow as KEY VALUE.",
    )
    parser.add_argument(
        "--probe",
        action="store_true",
        help="train 20 steps, write nothing, and say memory, images/s, hours and the largest batch",
    )
    parser.add_argument("--seed", type=int, help="replaces SEED")
    args = parse_arguments(parser)
    if args.seed is not None:
        args.opts += ["SEED", str(args.seed)]
    return args


if __name__ == "__main__":
    _init_paths.run_main(main)
