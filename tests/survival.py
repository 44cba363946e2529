"""Kills training runs at random moments and compares what is left with an undisturbed run.

    python tests/survival.py --kills 200 --inside 50

Every life of the run is ended by SIGKILL: at a random moment (--kills), or inside the writing of a
checkpoint (--inside), before or after one of its system calls or halfway through its bytes. After
every death some checkpoint must be whole; the run that goes on to its end must have the weights of
the undisturbed one, bit for bit.
"""

import argparse
import os
import random
import runpy
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
RUN = "synthetic/rtlinearformer_slim_synthetic"
TINY = (
    "--cfg configs/synthetic/rtlinearformer_slim_synthetic.yaml MODEL.OPTIONS.base_channels 8 "
    "MODEL.OPTIONS.attention_channels 16 MODEL.OPTIONS.head_channels 16 "
    "MODEL.OPTIONS.context_channels 16 DATASET.SIZE (96,64) TRAIN.IMAGE_SIZE (96,64) "
    "DATASET.TRAIN_SET 0:12 DATASET.TEST_SET 100:102 TRAIN.BATCH_SIZE_PER_GPU 4 WORKERS 0 "
    "TRAIN.WARMUP_STEPS 2 TRAIN.SAVE_EVERY 1 TRAIN.EVAL_EVERY 20 TRAIN.RESUME True"
).split()
CALLS = ("fsync", "link", "replace", "chmod")  # of the writing of a checkpoint


def command(folder: Path, epochs: int) -> list[str]:
    """The run, to be started as often as it takes."""
    return [*TINY, "TRAIN.END_EPOCH", str(epochs), "OUTPUT_DIR", str(folder)]


def start(folder: Path, epochs: int, *hook: str) -> subprocess.Popen:
    """One life of the run; `hook` arms `die_inside`."""
    program = [str(Path(__file__)), "--life", *hook, "--"] if hook else ["tools/train.py"]
    words = [sys.executable, *program, *command(folder, epochs)]
    quiet = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    environment.pop("PYTHONUNBUFFERED", None)
    return subprocess.Popen(words, cwd=ROOT, env=environment, **quiet)


def die_inside(call: str, when: str, number: int) -> None:
    """Have this process end by SIGKILL at the `number`-th `call` of the writing of checkpoints."""
    if call == "write":
        _die_while_writing(number)
        return
    sys.path.insert(0, str(ROOT))
    from utils import checkpoint

    original, save, seen, armed = getattr(os, call), checkpoint.save_checkpoint, 0, False

    def saving(*args, **more):
        nonlocal armed
        armed = True
        save(*args, **more)
        armed = False

    def deadly(*args, **more):
        nonlocal seen
        seen += armed
        if not armed:
            return original(*args, **more)
        if seen == number and when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        result = original(*args, **more)
        if seen == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(os, call, deadly)
    checkpoint.save_checkpoint = saving


def _die_while_writing(number: int) -> None:
    """Write half of a checkpoint, on disk, then die."""
    sys.path.insert(0, str(ROOT))
    from utils import records

    original, seen = records.atomic_file, 0

    def deadly(path, *more):
        nonlocal seen
        seen += str(path).endswith("last.pt")
        opened = original(path, *more)
        if seen != number:
            return opened
        stream = opened.__enter__()

        class Half:
            context = opened  # or its file would be closed

            def __enter__(self):
                return self

            def __exit__(self, *_):
                pass

            def write(self, data):
                stream.write(data[: len(data) // 2])
                stream.flush()
                os.kill(os.getpid(), signal.SIGKILL)

        return Half()

    records.atomic_file = deadly


def steps_done(folder: Path) -> int:
    """Steps in the newest whole checkpoint; at least one must be whole."""
    problems = []
    for name in ("last.pt", "previous.pt"):
        path = folder / RUN / name
        if not path.exists():
            continue
        try:
            return torch.load(path, weights_only=True)["progress"]["step"]
        except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
            problems.append(f"{name}: {error}")
    assert not problems, problems
    return 0


def written(path: Path) -> int:
    """When a file was written; 0 if there is none."""
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return 0


def kill_at_random(folder: Path, epochs: int, rng: random.Random) -> str:
    """One life that ends at a random moment of training."""
    process = start(folder, epochs)
    for line in process.stdout:
        if "images loaded by" in line:
            break
    # However fast the machine is, a life is a few steps long.
    last = folder / RUN / "last.pt"
    for _ in range(rng.randrange(4)):
        before = written(last)
        while written(last) == before and process.poll() is None:
            time.sleep(0.001)
    time.sleep(rng.uniform(0, 0.2))
    process.send_signal(signal.SIGKILL)
    rest = process.communicate()[0]
    assert process.returncode == -signal.SIGKILL, f"the run had ended:\n{rest}"
    return "at random"


def kill_inside(folder: Path, epochs: int, rng: random.Random) -> str:
    """One life that ends inside the writing of a checkpoint."""
    call = rng.choice(("write", *CALLS))
    hook = (call, rng.choice(("before", "after")), str(rng.randint(2, 6)))
    process = start(folder, epochs, *hook)
    out = process.communicate()[0]
    assert process.returncode == -signal.SIGKILL, f"{hook} did not end the run:\n{out}"
    return " ".join(hook)


def finish(folder: Path, epochs: int) -> dict:
    """Let the run go on to its end; its last checkpoint."""
    process = start(folder, epochs)
    out = process.communicate()[0]
    assert process.returncode == 0, out
    return torch.load(folder / RUN / "last.pt", weights_only=True)


def differences(one: dict, two: dict) -> list[str]:
    """Names of the tensors that differ in weights, averaged weights or optimiser."""
    found = [
        f"{kind} {key}"
        for kind in ("model", "trained")
        for key in one[kind]
        if not torch.equal(one[kind][key], two[kind][key])
    ]
    states = [checkpoint["optimizer"]["state"] for checkpoint in (one, two)]
    return found + [
        f"optimizer {index} {key}"
        for index, values in states[0].items()
        for key, value in values.items()
        if not torch.equal(value, states[1][index][key])
    ]


def survive(folder: Path, kills: int, inside: int, seed: int, say=print) -> None:
    """Raises AssertionError where a run does not survive."""
    rng, epochs = random.Random(seed), 8 + 3 * (kills + inside)
    lives = [kill_at_random] * kills + [kill_inside] * inside
    rng.shuffle(lives)
    before = 0
    for number, life in enumerate(lives, 1):
        how = life(folder / "killed", epochs, rng)
        done = steps_done(folder / "killed")
        say(f"death {number} of {len(lives)}, {how}: {done} steps done")
        assert done >= before, f"work was lost: {before} steps were done"
        before = done
    killed, whole = (finish(folder / name, epochs) for name in ("killed", "whole"))
    assert not (found := differences(killed, whole)), found
    assert killed["progress"]["step"] == whole["progress"]["step"] == 3 * epochs
    say(f"{len(lives)} deaths: weights, averaged weights and optimiser are those of the whole run")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=200, help="deaths at random moments")
    parser.add_argument("--inside", type=int, default=50, help="deaths while writing a checkpoint")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        survive(Path(folder), args.kills, args.inside, args.seed)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--life"]:
        end = sys.argv.index("--")
        die_inside(sys.argv[2], sys.argv[3], int(sys.argv[4]))
        sys.argv = ["tools/train.py", *sys.argv[end + 1 :]]
        sys.path.insert(0, str(ROOT / "tools"))
        runpy.run_path(str(ROOT / "tools/train.py"), run_name="__main__")
    else:
        main()
