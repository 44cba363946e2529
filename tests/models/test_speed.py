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
from utils.deploy import prepare_for_inference
from utils.errors import InputError
from utils.roofline import CARDS

speed = importlib.import_module("models.speed.speed")
timed_lines = importlib.import_module("models.speed.timed_lines")
timing_report = importlib.import_module("models.speed.timing_report")
ENDS = tuple(timing_report.ENDS)

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
    """The timed functions give what their names say, equal for the deployed and trained network."""
    torch.manual_seed(0)
    model = build_model(name, 5).eval()
    args = speed.parse(["--a", name, *QUICK, "--form", "published", "eager"], None)
    with torch.inference_mode():
        functions, told = speed.prepare({name: model}, args, torch.device("cpu"))
        results = {key: function() for key, function in functions.items()}
    assert list(told) == [f"{name} eager fp32"]
    plain, fused = (
        {end: results.get(f"{name} {form} fp32 {end}") for end in ENDS}
        for form in ("published", "eager")
    )
    stride = model.output_stride
    assert plain["frame"] is None  # published scripts have no such line
    assert fused["logits"].shape == (1, 5, 64 // stride, 128 // stride)
    assert fused["resized"].shape == (1, 5, 64, 128)
    for end in ("classes", "frame"):
        assert fused[end].shape == (1, 64, 128) and fused[end].dtype == torch.uint8
    for end in ("logits", "resized"):
        scale = plain[end].abs().max()
        assert (fused[end] - plain[end]).abs().max() < 1e-3 * scale
    assert (fused["classes"] != plain["classes"]).float().mean() < 1e-3


@pytest.mark.medium
def test_record(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(speed, "MIN_ITERATIONS", 2)
    threads, out = torch.get_num_threads(), tmp_path / "deep" / "speed.json"
    names = ["pidnet_s", "ddrnet_23_slim"]
    words = "--c 5 --batch 2 --precision fp32 bf16 --form published eager --lines logits frame"
    both = [word for name in names for word in ("--a", name)]
    try:
        status = speed.main([*both, *words.split(), *QUICK, "--out", str(out)])
    finally:
        torch.set_num_threads(threads)
    done = capsys.readouterr()
    record = json.loads(out.read_text())
    assert status == 0
    eager = {f"eager {p} {end}" for p in ("fp32", "bf16") for end in ("logits", "frame")}
    lines = eager | {"published fp32 logits"}
    assert set(record["lines"]) == {f"{name} {line}" for name in names for line in lines}
    for times in record["lines"].values():
        assert 0 < times["p10_ms"] <= times["median_ms"] <= times["p90_ms"]
        assert times["fps"] == pytest.approx(2000 / times["median_ms"])
        assert len(times["round_ms"]) == speed.ROUNDS
    assert len(record["time_ratios"]) == 4  # logits of both, in both precisions
    for pair, ratio in record["time_ratios"].items():
        one, other = (record["lines"][line] for line in pair.split(" / "))
        assert ratio == pytest.approx(time_ratio(one, other)), pair
    assert record["input"] == [2, 3, 64, 128] and record["device"] == "cpu"
    assert record["environment"]["cpu_threads"] == 1 and record["environment"]["torch"]
    assert record["peak"].keys() == {"fp32", "bf16"}
    assert all(peak["of"] in ("product", "convolution") for peak in record["peak"].values())
    for name in names:
        fused = fuse(build_model(name, 5))
        network = record["networks"][name]
        assert network["parameters"] == count_parameters(fused)
        assert network["macs_per_image"] == count_macs(fused, (64, 128))
    for text in ("input 2x3x64x128", "network", "+ in and out", "published / this", "of peak"):
        assert text in done.out, text
    assert "preparing ddrnet_23_slim, eager, bf16 (6 of 6)" in done.err
    assert "measuring 14 lines" in done.err


def test_a_form_that_one_network_cannot_take_does_not_end_the_others(monkeypatch, tmp_path, capsys):
    def only_ddrnet(network, **options):
        if network.architecture == "pidnet_s":
            raise InputError("no such layer")
        return prepare_for_inference(network, **options)

    monkeypatch.setattr(timed_lines, "prepare_for_inference", only_ddrnet)
    words = ["--a", "pidnet_s", *QUICK, "--lines", "logits", "--out", str(tmp_path / "x.json")]
    assert speed.main([*words, "--a", "ddrnet_23_slim"]) == 0
    done = capsys.readouterr()
    assert "pidnet_s eager fp32: left out: no such layer" in done.out
    assert list(json.loads((tmp_path / "x.json").read_text())["lines"]) == [
        "ddrnet_23_slim eager fp32 logits"
    ]
    with pytest.raises(ValueError, match=r"^no such layer$"):
        speed.main(words)


LINE = {"median_ms": 2.0, "p10_ms": 1.9, "p90_ms": 2.1, "fps": 500.0}


def test_rows_are_ranked_unless_the_machine_was_busy():
    slow, fast = "a eager fp32", "b eager fp32"
    record = {"lines": {f"{slow} classes": {**LINE, "median_ms": 3.0}, f"{fast} classes": LINE}}
    assert timing_report.sorted_rows(record, "classes") == [
        tuple(fast.split()),
        tuple(slow.split()),
    ]
    record["lines"][f"{fast} classes"] = {**LINE, "p90_ms": 9.0}
    assert timing_report.is_busy(record)
    assert timing_report.sorted_rows(record, "classes") == [
        tuple(slow.split()),
        tuple(fast.split()),
    ]


def test_estimates_need_no_card(capsys):
    words = "--a pidnet_s --a rtformer_slim --precision fp32 fp16 --estimate all --r 64 128"
    assert speed.main(words.split()) == 0
    out = capsys.readouterr().out
    assert "tf32 least, expected" in out and "1.9 to 3.4 times" in out
    for name in ("pidnet_s", "rtformer_slim"):
        assert [line.split()[2] for line in out.splitlines() if line.startswith(name)] == [*CARDS]


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
        (["--a", "pidnet_s", "--device", "cpu", "--form", "graph"], "graph needs a CUDA device"),
        (["--a", "pidnet_s", "--a", "pidnet_m", "--weights", "x"], "--a names 2"),
        (["--a", "pidnet_s", "--estimate", "rtx9090"], "invalid choice: 'rtx9090'"),
        (["--a", "pidnet_s", *QUICK, "--form", "published", "--lines", "frame"], "no line frame"),
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
        "", "--c 11", "--batch 2", "--form compiled", "--lines logits", "--no-tf32", "--seconds 1",
        "--form published eager", "--threads 1", f"--weights {tmp_path}/a/best.pt",
        "--precision bf16", f"--weights {tmp_path}/b/best.pt", "--r 64 128",
        "--batch 2 --form compiled",
    ):  # fmt: skip
        args = speed.parse([*usual, *more.split()], None)
        names.append(speed.record_path(args, ["pidnet_s"], torch.device("cpu")).name)
    assert names[0] == "pidnet_s_1024x2048_fp32_cpu.json" and len(set(names)) == len(names)
    assert names[-1] == "pidnet_s_1024x2048_fp32_cpu_batch-2_compiled.json"
    same = speed.parse([*usual, "--c", "19", "--batch", "1", "--tf32"], None)
    assert speed.record_path(same, ["pidnet_s"], torch.device("cpu")).name == names[0]


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
    assert set(record["lines"]) == {f"{canonical} eager fp32 {end}" for end in ENDS}


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
