"""The speed script and its published names."""

import importlib
import json
import os
import subprocess
import sys

import pytest
import torch

from models import build_model, fuse
from utils.benchmark import count_macs, count_parameters, time_ratio

speed = importlib.import_module("models.speed.speed")

# Multiply-accumulates at 1024x2048 with 19 classes, up to the logits, in units of 1e9.
PUBLISHED_MACS = {
    "pidnet_s": 47.19,
    "pidnet_m": 177.33,
    "pidnet_l": 274.93,
    "rtformer_slim": 37.79,
    "rtformer_base": 138.89,
}
QUICK = ("--r", "64", "128", "--seconds", "0.05", "--device", "cpu", "--threads", "1")


@pytest.mark.parametrize("name", PUBLISHED_MACS)
def test_macs(name):
    with torch.device("meta"):
        model = build_model(name, 19)
    assert count_macs(model, (1024, 2048)) / 1e9 == pytest.approx(PUBLISHED_MACS[name], abs=0.006)


@pytest.mark.medium
@pytest.mark.parametrize("name", ["pidnet_s", "rtformer_slim", "rtlinearformer_slim"])
def test_forms(name):
    """The timed functions give what their names say, equal for the fused and unfused network."""
    torch.manual_seed(0)
    model = build_model(name, 5).eval()
    args = speed.parse(["--a", name, *QUICK], None)
    with torch.inference_mode():
        fused = {form: fn() for form, fn in speed.prepare(fuse(model), args, "cpu").items()}
        plain = {form: fn() for form, fn in speed.prepare(model, args, "cpu").items()}
    stride = model.output_stride
    assert fused["logits"].shape == (1, 5, 64 // stride, 128 // stride)
    assert fused["upsample"].shape == (1, 5, 64, 128)
    assert fused["argmax"].shape == (1, 64, 128) and not fused["argmax"].is_floating_point()
    for form in ("logits", "upsample"):
        scale = plain[form].abs().max()
        assert (fused[form] - plain[form]).abs().max() < 1e-3 * scale


@pytest.mark.medium
def test_record(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(speed, "MIN_ITERATIONS", 2)
    threads, out = torch.get_num_threads(), tmp_path / "deep" / "speed.json"
    name = "pidnet_s"
    try:
        status = speed.main(
            [
                "--a",
                name,
                "--c",
                "5",
                *QUICK,
                "--batch",
                "2",
                "--precision",
                "bf16",
                "--compare-unfused",
                "--out",
                str(out),
            ]
        )
    finally:
        torch.set_num_threads(threads)
    printed = capsys.readouterr().out
    record = json.loads(out.read_text())
    assert status == 0
    own = {"logits", "upsample", "argmax"}
    others = {"unfused logits", "unfused upsample", "unfused argmax"}
    assert set(record["lines"]) == own | others | {"official logits", "official upsample"}
    for times in record["lines"].values():
        assert 0 < times["p10_ms"] <= times["median_ms"] <= times["p90_ms"]
        assert times["fps"] == pytest.approx(2000 / times["median_ms"])
        assert len(times["round_ms"]) == speed.ROUNDS
    names = {f"{line.split()[-1]} / {line}" for line in record["lines"] if line not in own}
    assert record["time_ratios"].keys() == names
    for pair, ratio in record["time_ratios"].items():
        one, other = (record["lines"][line] for line in pair.split(" / "))
        assert ratio == pytest.approx(time_ratio(one, other)), pair
    assert record["input"] == [2, 3, 64, 128] and record["precision"] == "bf16"
    assert record["memory_format"] == "channels_last" and record["device"] == "cpu"
    assert record["environment"]["cpu_threads"] == 1 and record["environment"]["torch"]
    fused = fuse(build_model(name, 5))
    assert record["parameters"] == count_parameters(fused)
    assert record["macs_per_image"] == count_macs(fused, (64, 128))
    for text in (
        "bf16",
        "channels_last",
        "logits at 1/8",
        "+ upsample to 64x128",
        "+ argmax",
        "official",
        "fused logits / unfused logits",
        "median ms",
        "peak memory",
        "MACs",
    ):
        assert text in printed, text


def test_weights_are_loaded_completely(tmp_path):
    missing = str(tmp_path / "best.pt")
    with pytest.raises((ValueError, OSError), match=r"best\.pt"):
        speed.main(["--a", "pidnet_s", *QUICK, "--weights", missing])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--a", "pidnet_z"], "unknown architecture 'pidnet_z'; did you mean pidnet_"),
        (["--a", "pidnet-s"], "unknown architecture 'pidnet-s'; did you mean pidnet_s"),
        ([], "the following arguments are required: --a"),
        (["--a", "pidnet_s", "--c", "1"], "num_classes is 1; at least 2"),
        (["--a", "pidnet_s", "--r", "0", "64"], "--r is 0 64"),
        (["--a", "pidnet_s", "--r", "64"], "--r: expected 2 arguments"),
        (["--a", "pidnet_s", "--batch", "0"], "--batch is 0"),
        (["--a", "pidnet_s", "--threads", "0"], "--threads is 0"),
        (["--a", "pidnet_s", "--seconds", "0"], "--seconds is 0.0"),
        (["--a", "pidnet_s", "--threads", "1" + "0" * 20], "--threads is 1000"),
        (["--a", "pidnet_s", "--batch", "1" + "0" * 20], "--batch is 1000"),
        (["--a", "pidnet_s", "--c", "1" + "0" * 20], "--c is 1000"),
        (["--a", "pidnet_s", "--r", "64", "1" + "0" * 20], "--r is 64 1000"),
        (
            ["--a", "pidnet_s", *QUICK, "--batch", "100000000"],
            "100000000x3x64x128 needs more",
        ),
        (["--a", "pidnet_s", *QUICK, "--r", "100000000", "100000000"], "use a smaller --r or"),
        (
            ["--a", "pidnet_s", *QUICK, "--r", f"{2**31 - 1}", f"{2**31 - 1}"],
            "s at 1x3x2147",
        ),
        (["--a", "pidnet_s", *QUICK, "--out", "tests"], "--out tests is a folder; name a file"),
        (
            ["--a", "pidnet_s", *QUICK, "--out", "README.md/x.json"],
            "of --out README.md must",
        ),
        (["--a", "pidnet_s", "--precision", "int8"], "invalid choice: 'int8'"),
        (["--a", "pidnet_s", "--device", "cpu", "--precision", "fp16"], "fp16 needs CUDA"),
        (["--a", "pidnet_s", "--device", "cpu", "--tf32"], "need CUDA"),
        (["--a", "pidnet_s", "--precison", "fp32"], "unrecognized arguments: --precison"),
    ],
)
def test_bad_input_is_one_sentence(arguments, message):
    with pytest.raises(ValueError) as error:
        speed.main(arguments)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_what_does_not_fit_is_told_before_and_while_it_runs(monkeypatch, tmp_path):
    arguments = ["--a", "pidnet_s", *QUICK, "--out", str(tmp_path / "x.json")]
    monkeypatch.setattr(speed, "free_memory", lambda: 1e5)
    with pytest.raises(ValueError, match=r"needs more than 0\.0 GB of memory, and 0\.0 GB are"):
        speed.main(arguments)
    monkeypatch.setattr(speed, "free_memory", lambda: 1e18)
    no_room = RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to ...")
    for error in (no_room, MemoryError(), torch.OutOfMemoryError("CUDA out of memory")):
        monkeypatch.setattr(speed, "run", lambda *_, error=error: (_ for _ in ()).throw(error))
        with pytest.raises(ValueError, match="pidnet_s at 1x3x64x128 does not fit into the device"):
            speed.main(arguments)
    monkeypatch.setattr(speed, "run", lambda *_: (_ for _ in ()).throw(RuntimeError("a mistake")))
    with pytest.raises(RuntimeError, match="a mistake"):
        speed.main(arguments)


@pytest.mark.parametrize("asked", [3, 100000, 2**31 - 1])
def test_threads_are_limited_to_the_cores(asked, monkeypatch, capsys):
    taken = []
    monkeypatch.setattr(speed, "cpu_count", lambda: 2)
    monkeypatch.setattr(torch, "set_num_threads", taken.append)
    speed.choose_device(speed.parse(["--a", "pidnet_s", "--threads", str(asked)], None))
    assert taken == [2]
    assert capsys.readouterr().out == f"--threads {asked}: limited to 2, the CPU cores at hand\n"
    speed.choose_device(speed.parse(["--a", "pidnet_s", "--threads", "2"], None))
    assert taken == [2, 2] and not capsys.readouterr().out


def test_records_of_other_conditions_have_other_names(tmp_path, monkeypatch):
    monkeypatch.setattr(speed, "ROOT", tmp_path)
    for folder, content in (("a", b"1"), ("b", b"2")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "best.pt").write_bytes(content)
    usual, names = ["--a", "pidnet_s"], []
    for more in (
        "", "--c 11", "--batch 2", "--compile", "--no-channels-last", "--no-tf32", "--seconds 1",
        "--compare-unfused", "--threads 1", f"--weights {tmp_path}/a/best.pt", "--precision bf16",
        f"--weights {tmp_path}/b/best.pt", "--r 64 128", "--batch 2 --compile",
    ):  # fmt: skip
        args = speed.parse([*usual, *more.split()], None)
        names.append(speed.record_path(args, "pidnet_s", torch.device("cpu")).name)
    assert names[0] == "pidnet_s_1024x2048_fp32_cpu.json" and len(set(names)) == len(names)
    assert names[-1] == "pidnet_s_1024x2048_fp32_cpu_batch-2_compile.json"
    same = speed.parse([*usual, "--c", "19", "--batch", "1", "--tf32"], None)
    assert speed.record_path(same, "pidnet_s", torch.device("cpu")).name == names[0]


@pytest.mark.parametrize(
    ("given", "expected"), [([], True), (["--tf32"], True), (["--no-tf32"], False)]
)
def test_tf32_is_set_alike_for_convolutions_and_products(monkeypatch, given, expected):
    """PyTorch's own setting has TF32 convolutions beside float32 products."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    try:
        for first in ((True, False), (False, True)):
            matmul.allow_tf32, cudnn.allow_tf32 = first
            args = speed.parse(["--a", "pidnet_s", "--device", "cuda", *given], None)
            assert speed.choose_device(args).type == "cuda"
            assert (matmul.allow_tf32, cudnn.allow_tf32) == (expected, expected)
    finally:
        matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark = before


def test_cuda_is_refused_without_it():
    with pytest.raises(ValueError, match="--device cuda: PyTorch finds no CUDA device"):
        speed.main(["--a", "pidnet_s", "--device", "cuda"])


def _start(root, script, *arguments) -> subprocess.CompletedProcess:
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    return subprocess.run(
        [sys.executable, f"models/speed/{script}.py", *arguments],
        cwd=root, env=environment, capture_output=True, text=True, timeout=600,
    )  # fmt: skip


@pytest.mark.medium
@pytest.mark.parametrize(
    ("script", "published", "canonical"),
    [
        ("speed", "rtformer_slim", "rtformer_slim"),
        ("pidnet_speed", "pidnet-s", "pidnet_s"),
        ("rt_linear_transformer_speed_v5", "rtlinearformer", "rtlinearformer_base"),
    ],
)
def test_scripts_run_from_the_root(root, tmp_path, script, published, canonical):
    out = tmp_path / "speed.json"
    done = _start(root, script, "--a", published, "--c", "19", *QUICK, "--out", str(out))
    assert done.returncode == 0, done.stderr
    assert "logits at 1/" in done.stdout
    record = json.loads(out.read_text())
    assert record["model"] == canonical and set(record["lines"]) == set(speed.FORMS)


@pytest.mark.medium
def test_a_script_ends_with_one_sentence_and_status_2(root):
    done = _start(root, "pidnet_speed", "--a", "pidnet-z", "--c", "19", "--r", "64", "128")
    assert done.returncode == 2
    assert done.stderr.startswith("error: unknown architecture") and done.stderr.count("\n") == 1
    assert not done.stdout


def test_options_come_from_the_checkpoint(tmp_path, capsys):
    options = {"base_channels": 4, "context_channels": 6, "head_channels": 8}
    model = build_model("pidnet_s", 3, **options)
    path = tmp_path / "small.pt"
    torch.save({"architecture": "pidnet_s", "options": options, "model": model.state_dict()}, path)
    out = str(tmp_path / "x.json")
    quick = ["--c", "3", "--r", "64", "64", "--seconds", "0.05", "--out", out]
    assert speed.main(["--a", "pidnet_s", *quick, "--weights", str(path)]) == 0
    assert "479 tensors loaded, none dropped" in capsys.readouterr().out
