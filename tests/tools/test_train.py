"""Training as a user runs it: start, interrupt, resume, several processes, bad input."""

import json
import re
import shutil
import signal
from pathlib import Path

import pytest
import torch
from checks import check_network
from processes import wait_for

from configs import get_config
from datasets import EvalTransform, get_meta

RUN = "synthetic/rtlinearformer_slim_synthetic"


def load(folder, name="last.pt"):
    return torch.load(folder / RUN / name, weights_only=True)


def metrics(folder):
    lines = (folder / RUN / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def timeless(records):
    clock = ("seconds", "trained_seconds", "eval_seconds", "images_per_second")
    return [{k: v for k, v in r.items() if k not in clock} for r in records]


def assert_same_run(one, two):
    a, b = load(one), load(two)
    for kind in ("model", "trained"):  # averaged, and as they are
        assert a[kind].keys() == b[kind].keys()
        for key, tensor in a[kind].items():
            assert torch.equal(tensor, b[kind][key]), (kind, key)
    states = [c["optimizer"]["state"] for c in (a, b)]
    for key, values in states[0].items():
        for name, value in values.items():
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(states[1][key][name]))
    assert timeless(metrics(one)) == timeless(metrics(two))


@pytest.fixture(scope="module")
def reference(tmp_path_factory, run, tiny):
    """A run of two epochs that nobody disturbs."""
    folder = tmp_path_factory.mktemp("reference")
    run("tools/train.py", *tiny, "OUTPUT_DIR", folder)
    return folder


def test_a_run_leaves_what_is_promised(reference):
    folder = reference / RUN
    names = {"config.yaml", "log.txt", "metrics.jsonl", "curve.png", "last.pt", "best.pt"}
    assert names <= {p.name for p in folder.iterdir()}
    assert [p.name for p in folder.iterdir() if p.name.startswith(".")] == [".lock"]
    records = metrics(reference)
    assert [r["epoch"] for r in records] == [1, 2]
    assert records[0]["step"] == 3 and len(records[0]["iou"]) == 11
    assert records[0]["loss"] == pytest.approx(records[0]["main"] + records[0]["aux"], rel=1e-5)
    assert (folder / "curve.png").read_bytes().startswith(b"\x89PNG")
    best, last = load(reference, "best.pt"), load(reference)
    assert best["progress"]["best_miou"] == max(r["miou"] for r in records)
    assert last["progress"]["best_miou"] == best["progress"]["best_miou"]
    assert "optimizer" in last and "optimizer" not in best
    assert len(best["class_names"]) == 11 and best["architecture"] == "rtlinearformer_slim"
    assert best["input"] == EvalTransform().facts()
    at = best["progress"]["best_epoch"]
    score = {"miou": records[at - 1]["miou"], "epoch": at, "list": "scenes 100:104"}
    assert best["score"] == score and "score" not in last


@pytest.mark.alone
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_the_resumed_run_is_the_same_bit_for_bit(
    number, tmp_path, start, run, tiny, reference
):
    process = start("tools/train.py", *tiny, "OUTPUT_DIR", tmp_path)
    board = tmp_path / RUN / "log.txt"
    wait_for(lambda: board.exists() and "epochs of" in board.read_text(), process)
    process.send_signal(number)
    out, err = process.communicate(timeout=600)
    assert process.returncode == 128 + number, out + err
    assert "Traceback" not in err and "TRAIN.RESUME True" in out
    saved = load(tmp_path)["progress"]
    assert (saved["epoch"], saved["step_in_epoch"]) < (1, 0), "the signal came too late"
    done = run("tools/train.py", *tiny, "OUTPUT_DIR", tmp_path, "TRAIN.RESUME", "True")
    assert f"resumed after epoch 0, step {saved['step_in_epoch']}" in done.stdout
    assert_same_run(reference, tmp_path)


@pytest.mark.alone
def test_a_killed_run_goes_on_from_its_last_epoch(tmp_path, start, run, tiny, reference):
    process = start("tools/train.py", *tiny, "OUTPUT_DIR", tmp_path)
    wait_for((tmp_path / RUN / "last.pt").exists, process)
    process.kill()
    process.communicate()
    progress = load(tmp_path)["progress"]
    assert (progress["epoch"], progress["step_in_epoch"]) >= (0, 3)  # trained, perhaps not scored
    run("tools/train.py", *tiny, "OUTPUT_DIR", tmp_path, "TRAIN.RESUME", "True")
    assert_same_run(reference, tmp_path)


def test_a_new_run_keeps_the_earlier_one(tmp_path, call, tiny):
    short = [*tiny, "OUTPUT_DIR", tmp_path, "TRAIN.END_EPOCH", 1]
    call("tools/train.py", *short)
    first = (tmp_path / RUN / "last.pt").read_bytes()
    done = call("tools/train.py", *short, "TRAIN.RESUME", "True")
    assert "resumed after epoch 1" in done.stdout and len(metrics(tmp_path)) == 1
    done = call("tools/train.py", *short, "--seed", 5)
    assert f"it is kept as {tmp_path / RUN}.1" in done.stdout
    assert (tmp_path / f"{RUN}.1" / "last.pt").read_bytes() == first
    assert "SEED: 5" in (tmp_path / RUN / "config.yaml").read_text()


def test_a_limit_of_steps_can_be_raised(tmp_path, call, tiny):
    words = [*tiny, "OUTPUT_DIR", tmp_path, "TRAIN.RESUME", "True", "TRAIN.STEPS"]
    for steps, epochs in ((4, {1: 3, 2: 4}), (4, {1: 3, 2: 4}), (8, {1: 3, 2: 6, 3: 8})):
        call("tools/train.py", *words, steps)
        assert {r["epoch"]: r["step"] for r in metrics(tmp_path)} == epochs
        assert load(tmp_path)["progress"]["step"] == steps
        assert metrics(tmp_path)[-1]["miou"] is not None


def test_two_processes_follow_the_curve_of_one_with_twice_the_batch(tmp_path, run, tiny):
    # Small steps of plain SGD: Adam and large steps blow rounding errors up to whole steps.
    sgd = ["TRAIN.OPTIMIZER", "sgd", "TRAIN.LR", 0.0005, "TRAIN.WARMUP_STEPS", 0]
    plain = [*tiny, "MODEL.OPTIONS.drop_path", 0.0, "TRAIN.PRECISION", "fp32", *sgd]
    run("tools/train.py", *plain, "OUTPUT_DIR", tmp_path / "one")
    halves = [*plain, "TRAIN.BATCH_SIZE_PER_GPU", 2, "OUTPUT_DIR", tmp_path / "two"]
    torchrun = ["torch.distributed.run", "--standalone", "--nproc-per-node=2", "tools/train.py"]
    run("-m", *torchrun, *halves)
    one, two = metrics(tmp_path / "one"), metrics(tmp_path / "two")
    for a, b in zip(one, two, strict=True):
        for name in ("loss", "main", "aux"):
            assert a[name] == pytest.approx(b[name], rel=1e-4), (name, a, b)
        assert a["pixel_accuracy"] == pytest.approx(b["pixel_accuracy"], abs=0.01)
    assert one[1]["loss"] != pytest.approx(one[0]["loss"], rel=1e-3)


def test_accumulation_and_gpu_zero_of_published_commands(tmp_path, call, tiny):
    call("tools/train.py", *tiny, "OUTPUT_DIR", tmp_path, "TRAIN.ACCUMULATE", 3, "GPUS", 0)
    assert [r["step"] for r in metrics(tmp_path)] == [1, 2]
    words = (
        "batch 12 (TRAIN.BATCH_SIZE_PER_GPU 4 x TRAIN.ACCUMULATE 3 x 1 process); 2 epochs of 1 step"
    )
    assert words in (tmp_path / RUN / "log.txt").read_text()


def test_bf16_sgd_and_boundary_losses_train(tmp_path, call):
    done = call(
        *"tools/train.py --cfg configs/cityscapes/pidnet_s_cityscapes.yaml".split(),
        *"DATASET.DATASET synthetic DATASET.SIZE (96,64) DATASET.TRAIN_SET 0:4".split(),
        *"DATASET.TEST_SET 9:10 TRAIN.IMAGE_SIZE (96,64) TRAIN.BASE_SIZE 0 WORKERS 1".split(),
        *"TRAIN.BATCH_SIZE_PER_GPU 2 TRAIN.END_EPOCH 1 TRAIN.PRECISION bf16".split(),
        *"MODEL.OPTIONS.base_channels 8 MODEL.OPTIONS.context_channels 8".split(),
        *("OUTPUT_DIR", tmp_path),
    )
    record = json.loads((tmp_path / "synthetic/pidnet_s_cityscapes/metrics.jsonl").read_text())
    assert {"main", "aux", "boundary", "boundary_aware"} <= record.keys()
    assert "bf16" in done.stdout


BAD = {
    "unknown key": (["TRAIN.LRR", "1"], ["TRAIN.LRR", "TRAIN.LR"]),
    "class count": (["DATASET.NUM_CLASSES", "12"], ["class count", "class names"]),
    "missing GPU": (["GPUS", "(7)"], ["GPUS (7,)", "no CUDA device 7"]),
    "missing second GPU": (["GPUS", "(0,9)"], ["GPUS (0, 9)", "no CUDA device"]),
    "missing list": (
        ["DATASET.DATASET", "camvid", "DATASET.TRAIN_SET", "list/camvid/gone.lst"],
        ["list/camvid/gone.lst"],
    ),
    "crop larger than image": (["TRAIN.IMAGE_SIZE", "(960,640)"], ["640", "64x96"]),
    "unknown network": (["MODEL.NAME", "rtformer_slimm"], ["rtformer_slimm", "rtformer_slim"]),
    "unknown option": (["MODEL.OPTIONS.widht", "3"], ["widht", "base_channels"]),
    "unknown dataset": (["DATASET.DATASET", "camvit"], ["camvit", "camvid"]),
    "no weights": (["MODEL.PRETRAINED", "gone.pt"], ["MODEL.PRETRAINED gone.pt"]),
    "weights of nothing": (["MODEL.PRETRAINED", "README.md"], ["README.md"]),
    "no such submodule": (
        ["MODEL.PRETRAINED", "{folder}/best.pt", "MODEL.RESET", "('haed',)"],
        ["haed"],
    ),
    "other options": (
        ["MODEL.PRETRAINED", "{folder}/best.pt", "MODEL.OPTIONS.head_channels", "8"],
        ["best.pt", "MODEL.OPTIONS", "must be the same"],
    ),
    "batch too large": (
        ["TRAIN.BATCH_SIZE_PER_GPU", "99"],
        ["12 training images", "batch of 99", "TRAIN.ACCUMULATE 1 x 1 process"],
    ),
    "batch of one": (
        ["TRAIN.BATCH_SIZE_PER_GPU", "1"],
        ["TRAIN.BATCH_SIZE_PER_GPU 1", "rtlinearformer_slim", "2 or more"],
    ),
    "accumulated batch of one": (
        ["TRAIN.BATCH_SIZE_PER_GPU", "1", "TRAIN.ACCUMULATE", "4"],
        ["TRAIN.BATCH_SIZE_PER_GPU 1", "TRAIN.ACCUMULATE does not help"],
    ),
    "auxiliary weights": (["LOSS.AUX_WEIGHTS", "(0.4,0.4)"], ["LOSS.AUX_WEIGHTS", "1 auxiliary"]),
    "half precision": (["TRAIN.PRECISION", "fp16"], ["TRAIN.PRECISION fp16", "CUDA"]),
    "optimizer": (["TRAIN.OPTIMIZER", "adam"], ["TRAIN.OPTIMIZER", "adamw"]),
    "scene range": (["DATASET.TRAIN_SET", "ten"], ["DATASET.TRAIN_SET", "'ten'", "first:last"]),
    "cache of scenes": (["DATASET.CACHE", "disk"], ["DATASET.CACHE disk", "synthetic"]),
}


def content(folder):
    """Every file below a folder with what it holds."""
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_sentence_and_touches_nothing(name, tmp_path, refuses, tiny, reference):
    overrides, words = BAD[name]
    shutil.copytree(reference / RUN, tmp_path / RUN)  # would be moved aside by a run that starts
    overrides = [text.format(folder=tmp_path / RUN) for text in overrides]
    before = content(tmp_path)
    refuses(words, "tools/train.py", *tiny, "OUTPUT_DIR", tmp_path, *overrides)
    assert content(tmp_path) == before


def test_a_program_that_refuses_says_one_sentence(tmp_path, run, tiny):
    large = ["TRAIN.IMAGE_SIZE", "(960,640)", "OUTPUT_DIR", tmp_path]
    done = run("tools/train.py", *tiny, *large, status=2)
    assert re.fullmatch(r"error: crop 640x960 .*\n", done.stderr)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("script", ["tools/train.py", "tools/eval.py"])
def test_an_output_folder_that_cannot_be_is_refused_first(script, tmp_path, refuses, tiny):
    (tmp_path / "file").write_text("kept")
    (tmp_path / "run/synthetic").mkdir(parents=True)
    (tmp_path / "run" / RUN).write_text("kept")
    (tmp_path / "broken").symlink_to(tmp_path / "gone")
    before = content(tmp_path)
    for place in ("file", "file/below", "run", "broken"):
        words = ["OUTPUT_DIR", str(tmp_path / place), "is not a folder"]
        refuses(words, script, *tiny, "OUTPUT_DIR", tmp_path / place)
    assert content(tmp_path) == before and not (tmp_path / "gone").exists()
    with pytest.MonkeyPatch.context() as patch:  # root may write anywhere
        patch.setattr("os.access", lambda place, mode: Path(place) != tmp_path)
        words = [f"but {tmp_path} is not a folder that can be written"]
        refuses(words, script, *tiny, "OUTPUT_DIR", tmp_path / "new")


NORMS = {  # network, size of a crop, whether one image is enough for its norms
    "pidnet_s": ((96, 64), False),
    "bisenetv1_r18": ((96, 64), False),
    "bisenetv2": ((96, 64), False),
    "lrformer_t": ((96, 64), True),
    "lrformer_t tiny": ((2, 2), False),
}


@pytest.mark.parametrize("name", NORMS)
def test_one_image_per_process_is_refused_where_norms_need_more(name, root):
    size, enough = NORMS[name]
    meta = get_meta("camvid")

    def config(*overrides):
        network = ["MODEL.NAME", name.split()[0], "TRAIN.IMAGE_SIZE", str(size)]
        options = [*network, "TRAIN.BATCH_SIZE_PER_GPU", "1", *overrides]
        return get_config(root / "configs/camvid/pidnet_s_camvid.yaml", options)

    for processes, sync, expected in (
        (1, "True", enough), (2, "False", enough), (2, "True", True)
    ):  # fmt: skip
        settings = config("TRAIN.SYNC_BN", sync)
        if expected:
            check_network(settings, meta, processes)
            continue
        with pytest.raises(ValueError, match=r"set TRAIN.BATCH_SIZE_PER_GPU 2") as caught:
            check_network(settings, meta, processes)
        assert ("TRAIN.SYNC_BN True" in str(caught.value)) == (processes == 2)
    check_network(config("TRAIN.BATCH_SIZE_PER_GPU", "2"), meta, 1)


def test_a_damaged_checkpoint_is_not_resumed(tmp_path, run, tiny, reference):
    whole = (reference / RUN / "last.pt").read_bytes()
    folder = tmp_path / RUN
    folder.mkdir(parents=True)
    for content in (whole[: len(whole) // 2], b""):
        (folder / "last.pt").write_bytes(content)
        done = run(
            "tools/train.py", *tiny, "OUTPUT_DIR", tmp_path, "TRAIN.RESUME", "True", status=2
        )
        assert re.fullmatch(r"error: .*last\.pt .*damaged.*\n", done.stderr)
        assert (folder / "last.pt").read_bytes() == content


@pytest.mark.parametrize(
    "changed",
    [
        ["TRAIN.OPTIMIZER", "sgd"],
        ["TRAIN.WD_ON_NORM", "True"],
        ["MODEL.OPTIONS.head_channels", 8],
    ],
    ids=lambda c: c[0],
)
def test_a_run_cannot_change_its_shape_on_the_way(changed, tmp_path, run, tiny, reference):
    folder = tmp_path / RUN
    folder.mkdir(parents=True)
    shutil.copy(reference / RUN / "last.pt", folder)
    resume = ["OUTPUT_DIR", tmp_path, "TRAIN.RESUME", "True"]
    done = run("tools/train.py", *tiny, *resume, *changed, status=2)
    assert re.fullmatch(rf"error: .*last\.pt is a run with {changed[0]} .*\n", done.stderr)
