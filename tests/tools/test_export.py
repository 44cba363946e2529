"""The command that exports: what it leaves behind, and what it refuses."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from processes import limited, wait_for
from torch import nn

from datasets.synthetic import draw_scene
from models import fuse, list_models
from utils.exported import read_description

SCRIPT = "tools/export.py"
SIZE = ("--r", 72, 104)
NAME = "pidnet_s_72x104"
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def best(weights) -> Path:
    return weights() / "best.pt"


@pytest.fixture
def listed(tmp_path) -> Path:
    """A folder `drawn` with three streets, their labels, and a list of both."""
    folder = tmp_path / "data" / "synthetic"
    folder.mkdir(parents=True)
    lines = []
    for index in range(3):
        image, label = draw_scene(index, height=80, width=110)
        cv2.imwrite(str(folder / f"{index}.png"), image[..., ::-1])
        cv2.imwrite(str(folder / f"{index}_label.png"), label)
        lines.append(f"{index}.png\t{index}_label.png\n")
    (tmp_path / "data" / "three.lst").write_text("".join(lines))
    return tmp_path / "data"


def needs(*packages: str) -> None:
    for package in packages:
        pytest.importorskip(package, reason=f"{package} is not installed (see the extras)")


def report_of(out: Path, file: str) -> dict:
    return json.loads((out / f"{file}.gate.json").read_text(encoding="utf-8"))


def test_a_checkpoint_becomes_a_file_that_says_what_it_is(best, call, tmp_path):
    out = tmp_path / "out"
    result = call(SCRIPT, best, "--format", "torch", *SIZE, "--out", out)
    file = f"{NAME}.pt2"
    left = {file, f"{file}.gate.json", f"{file}.gate.txt", f"{NAME}.json", "run.py", "README.md"}
    assert set(os.listdir(out)) == left
    report = report_of(out, file)
    assert report["status"] == "passed" and f"{file}: passed" in result.stdout
    # The classes are those of the drawn scenes, so that these have labels.
    assert abs(report["comparison"]["miou_lost"]) < 0.01 and report["comparison"]["scenes"] == 4
    facts = read_description("torch", out / file)
    assert facts == json.loads((out / f"{NAME}.json").read_text()) == report["description"]
    assert facts["architecture"] == "pidnet_s" and facts["dataset"] == "synthetic"
    assert len(facts["weights"]["sha256"]) == 64 and facts["mean"] == [0.485, 0.456, 0.406]
    assert (out / "run.py").read_text() == (ROOT / "utils/runners/run.py").read_text()
    assert "command" in report and "torch" in report["environment"]


def test_a_list_with_labels(best, listed, call, tmp_path):
    words = ("--check", "three.lst", "--root", listed)
    call(SCRIPT, best, "--format", "torch", *SIZE, *words, "--out", tmp_path / "out")
    report = report_of(tmp_path / "out", f"{NAME}.pt2")
    assert report["checked_on"] == "3 pictures of three.lst"
    assert report["comparison"]["miou_network"] > 0


def test_a_folder_and_logits_of_random_weights(listed, call, tmp_path):
    words = ("--arch", "bisenetv2", "--c", 3, "--output", "logits", "--check", listed)
    call(SCRIPT, *words, "--format", "torch", *SIZE, "--out", tmp_path / "out")
    name = "bisenetv2_72x104_logits"
    report = report_of(tmp_path / "out", f"{name}.pt2")
    assert report["status"] == "passed" and report["comparison"]["scenes"] == 6
    assert 0 <= report["comparison"]["largest_logit_difference"] < 1e-3
    assert report["description"]["weights"] == {}
    assert report["description"]["class_names"] == ["class 0", "class 1", "class 2"]
    assert not (tmp_path / "out" / "run.py").exists()


def damaged(model: nn.Module) -> nn.Module:
    network = fuse(model)
    with torch.no_grad():
        network.stem.conv1.weight[0] += 1
    return network


def test_a_damaged_file_does_not_get_its_name(best, call, tmp_path, monkeypatch):
    out = tmp_path / "out"
    monkeypatch.setattr("exporting.fuse", damaged)
    result = call(SCRIPT, best, "--format", "torch", *SIZE, "--out", out, status=1)
    file = f"{NAME}.pt2"
    assert set(os.listdir(out)) == {f"{file}.failed", f"{file}.gate.json", f"{file}.gate.txt"}
    assert report_of(out, file)["status"] == "failed" and f"{file}: failed" in result.stdout
    assert "99.99 % are needed" in (out / f"{file}.gate.txt").read_text()
    monkeypatch.undo()
    call(SCRIPT, best, "--format", "torch", *SIZE, "--out", out)  # the name is still free
    assert report_of(out, file)["status"] == "passed" and (out / file).is_file()


def test_what_cannot_be_written_leaves_nothing(best, call, tmp_path, monkeypatch):
    def broken(*arguments, **more):
        raise RuntimeError("no rule for aten.magic\nlong story") from KeyError("deep")

    monkeypatch.setattr("exporting.write_file", broken)
    result = call(SCRIPT, best, "--format", "torch", *SIZE, "--out", tmp_path / "out", status=2)
    assert "pidnet_s cannot be written as torch" in result.stderr
    assert not os.listdir(tmp_path / "out")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--format", "tflite"), ["tflite", "onnx", "openvino", "torch", "aoti", "tensorrt"]),
        (("--format", "torch", "--precision", "int8"), ["int8", "torch", "fp32, fp16, bf16"]),
        (("--format", "torch", "--precision", "fp8"), ["fp8", "bf16"]),
        (("--format", "torch", "--calibrate", "x"), ["--precision int8", "--calibrate"]),
        (("--format", "torch", "--c", "4"), ["--c is for random weights"]),
        (("--format", "torch", "--dynamic"), ["72 104", "multiples of 64 from 320"]),
        (("--format", "torch", "--check", "nowhere"), ["--check nowhere", "neither"]),
        (("--format", "torch", "--labels", "index"), ["--labels index is for list files"]),
        (("--format", "torch", "--check", "docs", "--labels", "x"), ["--labels x is for list"]),
        (("--format", "torch", "--classes", "cityscapes"), ["trained on other classes"]),
        (("--format", "torch", "--classes", "citiscapes"), ["citiscapes", "cityscapes"]),
        (("--format", "torch", "--arch", "ddrnet_23"), ["holds pidnet_s, not ddrnet_23"]),
        (("--format", "torch", "--r", "0", "64"), ["--r is 0 64"]),
    ],
)
def test_bad_words(words, told, best, refuses, tmp_path):
    size = () if "--r" in words else SIZE
    refuses(told, SCRIPT, best, *words, *size, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_random_weights_need_a_name_and_classes(refuses, tmp_path):
    more = ("--format", "torch", *SIZE, "--out", tmp_path / "out")
    for words in ((), ("--arch", "pidnet_s"), ("--arch", "pidnet_s", "--c", 3, "--classes", "voc")):
        refuses(["--arch NAME", "--c CLASSES"], SCRIPT, *words, *more)
    refuses(["did you mean pidnet_s"], SCRIPT, "--arch", "pidnet_ss", "--c", 3, *more)
    refuses(["does not exist"], SCRIPT, tmp_path / "none.pt", *more)


def test_weights_of_another_class_count(best, refuses, tmp_path):
    bare = tmp_path / "bare.pt"
    torch.save(torch.load(best, weights_only=True)["model"], bare)
    words = ("--arch", "pidnet_s", "--classes", "cityscapes", "--format", "torch", *SIZE)
    refuses(["bare.pt"], SCRIPT, bare, *words, "--out", tmp_path / "out")
    refuses(["name its architecture"], SCRIPT, bare, *words[4:], "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def unknown_classes(best: Path, tmp_path: Path) -> Path:
    """The network of `best` with a data set that no installation knows."""
    content = torch.load(best, weights_only=True)
    content["dataset"] = "mine"
    torch.save(content, tmp_path / "mine.pt")
    return tmp_path / "mine.pt"


def test_labels_whose_meaning_is_not_said(best, listed, call, refuses, tmp_path):
    """The list is used without its labels, and the sentence names what would tell of them."""
    mine, out = unknown_classes(best, tmp_path), tmp_path / "out"
    words = (mine, "--format", "torch", *SIZE, "--check", "three.lst")
    (listed / "mine").mkdir()
    for file in (listed / "synthetic").iterdir():
        file.rename(listed / "mine" / file.name)
    lines = (listed / "three.lst").read_text().splitlines()
    lines = ["\t".join(f"mine/{name}" for name in line.split("\t")) for line in lines]
    (listed / "three.lst").write_text("\n".join(lines))
    refuses(["--root names the folder"], SCRIPT, *words[:-1], listed / "three.lst", "--out", out)
    refuses(["--labels index needs --classes"], SCRIPT, *words, "--root", listed, "--labels",
            "index", "--out", out)  # fmt: skip
    assert not out.exists()
    printed = call(SCRIPT, *words, "--root", listed, "--out", out).stdout
    assert "3 pictures of three.lst without their labels, whose meaning --classes" in printed
    assert "miou_network" not in report_of(out, f"{NAME}.pt2")["comparison"]


def test_a_single_picture_and_one_that_is_none(best, listed, call, refuses, tmp_path):
    words = (best, "--format", "torch", *SIZE)
    picture, broken = listed / "synthetic/0.png", tmp_path / "folder/broken.png"
    printed = call(SCRIPT, *words, "--check", picture, "--out", tmp_path / "out").stdout
    assert f"checked on 1 pictures of {picture}" in printed
    broken.parent.mkdir()
    broken.write_bytes(picture.read_bytes()[:300])
    refuses(["broken.png"], SCRIPT, *words, "--check", broken.parent, "--out", tmp_path / "no")
    assert not (tmp_path / "no").exists()


def test_pictures_of_calibration_are_no_pictures_to_check_on(listed, refuses, tmp_path):
    words = ("--arch", "bisenetv2", "--c", 3, "--format", "openvino", "--precision", "int8", *SIZE)
    needs("openvino", "nncf")
    both = ("--check", "three.lst", "--calibrate", "three.lst", "--root", listed)
    refuses(["are both three.lst"], SCRIPT, *words, *both, "--out", tmp_path / "out")


def test_more_classes_than_a_byte_holds(refuses, tmp_path):
    words = ("--arch", "pidnet_s", "--c", 257, "--format", "torch", *SIZE)
    told = ["257 classes", "256", "--output logits"]
    refuses(told, SCRIPT, *words, "--out", tmp_path / "out")


def test_labels_of_drawn_streets_judge_no_network_of_other_pictures(best, call, tmp_path):
    content = torch.load(best, weights_only=True)
    content["dataset"] = "camvid"  # which has the same classes
    torch.save(content, tmp_path / "camvid.pt")
    call(SCRIPT, tmp_path / "camvid.pt", "--format", "torch", *SIZE, "--out", tmp_path / "out")
    assert "miou_network" not in report_of(tmp_path / "out", f"{NAME}.pt2")["comparison"]


def test_the_size_of_pictures_goes_along(best, call, tmp_path):
    content = torch.load(best, weights_only=True)
    content["input"] = {"short_side": 300, "size_divisor": 8}
    torch.save(content, tmp_path / "scaled.pt")
    words = ("--format", "torch", *SIZE, "--out", tmp_path / "out")
    printed = call(SCRIPT, tmp_path / "scaled.pt", *words).stdout
    assert "brings its pictures to short_side 300, size_divisor 8; --r is 72 104" in printed
    facts = json.loads((tmp_path / "out" / f"{NAME}.json").read_text())
    assert facts["scaling"] == {"short_side": 300, "size_divisor": 8}


def test_what_is_somebodys_own_stays(best, call, refuses, tmp_path):
    words = ("--format", "torch", *SIZE, "--out", tmp_path)
    for name in ("README.md", "run.py"):
        (tmp_path / name).write_text("mine")
        refuses([f"{name} is not of an export"], SCRIPT, best, *words)
        assert (tmp_path / name).read_text() == "mine"
        (tmp_path / name).unlink()
    call(SCRIPT, best, *words)
    (tmp_path / f"{NAME}.pt2").unlink()
    more = ("--arch", "pidnet_s", "--c", 3, *words)
    refuses([f"{NAME}.json is of another network"], SCRIPT, *more)
    call(SCRIPT, best, *words)


@pytest.mark.parametrize("number", ["SIGTERM", "SIGHUP"])
def test_a_signal_leaves_nothing_behind(number, best, start, tmp_path):
    out = tmp_path / "out"
    process = start(SCRIPT, best, "--format", "torch", "--r", 360, 480, "--out", out)
    wait_for(lambda: list(out.glob(".export-*")), process)
    process.send_signal(getattr(signal, number))
    assert process.wait(60) == 130 and not os.listdir(out), process.communicate()


@pytest.mark.parametrize("kind", ["torch", "onnx", "openvino"])
def test_a_file_that_cannot_grow(kind, best, run, tmp_path):
    """As on a full disk: one sentence, and nothing is left."""
    needs(*{"onnx": ("onnx", "onnxscript", "onnxruntime")}.get(kind, (kind,)))
    out = tmp_path / "out"
    words = (best, "--format", kind, *SIZE, "--out", out)
    done = run(SCRIPT, *words, status=2, preexec_fn=limited(10_000))
    assert "cannot be written" in done.stderr.splitlines()[-1] and not os.listdir(out)
    assert "Traceback" not in done.stderr


def test_folders_that_cannot_take_files(best, refuses, tmp_path):
    (tmp_path / "file").write_text("")
    words = (best, "--format", "torch", *SIZE, "--out")
    refuses(["--out", "folder that can be written"], SCRIPT, *words, tmp_path / "file" / "in")
    (tmp_path / f"{NAME}.pt2").write_text("somebody's")
    refuses([f"{NAME}.pt2 exists"], SCRIPT, *words, tmp_path)
    assert (tmp_path / f"{NAME}.pt2").read_text() == "somebody's"


def test_all_packages_that_are_missing_are_named_at_once(best, refuses, tmp_path, monkeypatch):
    there = importlib.util.find_spec
    hide = lambda name, *more: None if name.startswith("onnx") else there(name, *more)  # noqa: E731
    monkeypatch.setattr(importlib.util, "find_spec", hide)
    told = ["onnxruntime, onnx, onnxscript are not", "pip install onnxruntime onnx onnxscript"]
    refuses(told, SCRIPT, best, "--format", "onnx", *SIZE, "--out", tmp_path / "out")


@pytest.mark.parametrize(
    ("words", "package"),
    [
        (("--format", "onnx"), "onnxruntime"),
        (("--format", "tensorrt"), "onnxruntime"),
        (("--format", "openvino"), "openvino"),
        (("--format", "openvino", "--precision", "int8", "--calibrate", "x"), "nncf"),
    ],
)
def test_packages_that_are_not_there(words, package, best, refuses, tmp_path, monkeypatch):
    there = importlib.util.find_spec

    def find(name, *more):
        instead = name.startswith(("onnx", "openvino"))  # whatever is installed here
        return None if name == package else there("json" if instead else name, *more)

    monkeypatch.setattr(importlib.util, "find_spec", find)
    told = [f"{package} is not installed", f"pip install {package}"]
    refuses(told, SCRIPT, best, *words, *SIZE, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_compiler_that_is_not_there(best, refuses, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    words = ("--format", "aoti", *SIZE, "--out", tmp_path / "out")
    refuses(["needs a C++ compiler"], SCRIPT, best, *words)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "precision"),
    [("pidnet_s", "bf16"), ("rtlinearformer_slim", "fp32"), ("bisenetv2", "fp32")],
)
def test_compiled_ahead(name, precision, best, call, tmp_path):
    words = (
        "--format",
        "aoti",
        "torch",
        "--precision",
        precision,
        *SIZE,
        "--out",
        tmp_path / "out",
    )
    call(SCRIPT, *((best,) if name == "pidnet_s" else ("--arch", name, "--c", 3)), *words)
    stem = f"{name}_72x104{'' if precision == 'fp32' else '_bf16'}"
    for ending in (".aoti.pt2", ".pt2"):
        assert report_of(tmp_path / "out", f"{stem}{ending}")["status"] == "passed"


@pytest.mark.medium
def test_several_formats_and_the_program_beside_them(best, call, tmp_path):
    needs("onnx", "onnxscript", "onnxruntime", "openvino")
    out = tmp_path / "out"
    call(SCRIPT, best, "--format", "onnx", "openvino", "tensorrt", "torch", *SIZE, "--out", out)
    for ending, kind in ((".onnx", "onnx"), (".xml", "openvino"), (".pt2", "torch")):
        assert report_of(out, NAME + ending)["status"] == "passed"
        facts = json.loads((out / f"{NAME}.json").read_text())
        assert read_description(kind, out / f"{NAME}{ending}") == facts
    report = report_of(out, f"{NAME}.tensorrt.onnx")
    assert report["status"] == "unverified" and "TensorRT has not run it" in report["reasons"][-1]
    image, _ = draw_scene(7, height=333, width=517)
    cv2.imwrite(str(tmp_path / "photo.png"), image[..., ::-1])
    maps = []
    for ending in (".onnx", ".xml"):
        pictures = tmp_path / f"pictures{ending}"
        words = [sys.executable, "run.py", f"{NAME}{ending}", tmp_path / "photo.png", "--out"]
        done = subprocess.run([*words, pictures], cwd=out, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        maps.append(cv2.imread(str(pictures / "photo_classes.png"), cv2.IMREAD_UNCHANGED))
        overlay = cv2.imread(str(pictures / "photo_overlay.png"))
        assert overlay.shape == image.shape and "%" in done.stdout
    assert maps[0].shape == image.shape[:2] and (maps[0] == maps[1]).mean() > 0.999


@pytest.mark.medium
@pytest.mark.parametrize("kind", ["onnx", "openvino", "tensorrt"])
def test_8_bits(kind, listed, call, tmp_path):
    needs("onnx", "onnxscript", "onnxruntime")
    if kind == "openvino":
        needs("openvino", "nncf")
    out = tmp_path / "out"
    words = ("--arch", "bisenetv2", "--classes", "synthetic", "--calibrate", listed, "--check")
    more = ("three.lst", "--root", listed, "--out", out, *SIZE)
    call(SCRIPT, *words, *more, "--format", kind, "--precision", "int8")
    (file,) = (path.name for path in out.glob("*.gate.json"))
    report = json.loads((out / file).read_text())
    assert report["status"] == "unverified" and report["comparison"]["scenes"] == 3
    assert any("stay in float" in reason for reason in report["reasons"])
    assert (kind == "tensorrt") == (not report["milliseconds"]) and report["kept_in_float"]
    assert report["comparison"]["equal_percent"] < 100


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp16", "bf16", "int8"])
@pytest.mark.parametrize("name", ["rtlinearformer_slim", "rtlinearformer_base"])
def test_networks_trained_on_photographs_keep_their_score(name, precision, shared, call, tmp_path):
    """Over the whole test list: RTSEG_IMAGES=233."""
    needs("openvino", "nncf")
    lines = (shared / "list/camvid/test.lst").read_text().splitlines()
    count = int(os.environ.get("RTSEG_IMAGES", 16))
    lines = lines[:: max(1, len(lines) // count)]
    (tmp_path / "some.lst").write_text("\n".join(lines))
    weights = shared / f"weights/{name}_camvid_480x360.safetensors"
    words = (weights, "--arch", name, "--classes", "camvid", "--labels", "index", "--root", shared)
    words += ("--format", "openvino", "--precision", precision, "--check", tmp_path / "some.lst")
    words += ("--calibrate", "list/camvid/train.lst") if precision == "int8" else ()
    call(SCRIPT, *words, "--r", 360, 480, "--out", tmp_path / "out")
    report = report_of(tmp_path / "out", f"{name}_360x480_{precision}.xml")
    # The limits are those of the gate: tests/utils/test_gate.py.
    assert report["status"] == "passed" and report["comparison"]["scenes"] == len(lines)
    assert "miou_lost" in report["comparison"]
    print(name, precision, report["reasons"])


@pytest.mark.slow
@pytest.mark.parametrize("size", [(256, 512), (250, 330)], ids=str)
@pytest.mark.parametrize("name", list_models())
def test_every_network(name, size, call, tmp_path):
    needs("onnx", "onnxscript", "onnxruntime", "openvino")
    out = tmp_path / "out"
    words = ("--arch", name, "--c", 19, "--r", *size, "--out", out)
    call(SCRIPT, *words, "--format", "onnx", "openvino")
    for ending in (".onnx", ".xml"):
        report = report_of(out, f"{name}_{size[0]}x{size[1]}{ending}")
        assert report["status"] == "passed" and report["comparison"]["scenes"] == 4
    assert not np.isnan(report["comparison"]["equal_percent"])
