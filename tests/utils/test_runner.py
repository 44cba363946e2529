"""The program that is copied beside exported files, without any runtime."""

import ast
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

SOURCE = Path(__file__).resolve().parents[2] / "utils" / "runners" / "run.py"
FACTS = {
    "format": "rtseg-export-1", "output": "classes", "size": [40, 60], "dynamic": {}, "scaling": {},
    "class_names": ["sky", "road"], "palette": [[0, 0, 200], [100, 0, 0]], "precision": "fp32",
}  # fmt: skip


@pytest.fixture
def program():
    spec = importlib.util.spec_from_file_location("run_beside_exports", SOURCE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def network(program, monkeypatch, **changes):
    """A network whose lower half is road, and the frames that it has been given."""
    given = []

    def run(frame):
        given.append(frame)
        classes = np.zeros(frame.shape[:3], np.uint8)
        classes[:, frame.shape[1] // 2 :] = 1
        return classes

    monkeypatch.setitem(program.RUNTIMES, ".onnx", lambda path: (run, json.dumps(FACTS | changes)))
    return program.Network("net.onnx"), given


def test_it_is_read_by_python_3_8_and_needs_no_pytorch():
    tree = ast.parse(SOURCE.read_text(encoding="utf-8"), feature_version=(3, 8))
    names = {
        name.split(".")[0]
        for node in ast.walk(tree)
        for name in (
            [alias.name for alias in node.names] if isinstance(node, ast.Import)
            else [node.module] if isinstance(node, ast.ImportFrom) else []
        )
    }  # fmt: skip
    runtimes = {"onnxruntime", "openvino", "tensorrt"}
    assert (
        names == {"argparse", "ctypes", "io", "json", "os", "sys", "numpy", "cv2", "PIL"} | runtimes
    )


def without_opencv(program, monkeypatch):
    from PIL import Image, ImageOps

    monkeypatch.setattr(program, "cv2", None)
    monkeypatch.setattr(program, "Image", Image, raising=False)
    monkeypatch.setattr(program, "ImageOps", ImageOps, raising=False)


@pytest.mark.parametrize("reader", ["OpenCV", "Pillow"])
def test_pictures_of_any_size(reader, program, monkeypatch, tmp_path, capsys):
    if reader == "Pillow":
        without_opencv(program, monkeypatch)
    _, given = network(program, monkeypatch)
    picture = np.random.default_rng(0).integers(0, 256, (81, 33, 3), np.uint8)
    cv2.imwrite(str(tmp_path / "a.photo.png"), picture[..., ::-1])
    (tmp_path / "net.onnx").write_text("")
    words = [tmp_path / "net.onnx", tmp_path / "a.photo.png", "--out", tmp_path / "new" / "out"]
    monkeypatch.setattr(sys, "argv", ["run.py", *map(str, words)])
    assert program.main() == 0
    (frame,) = given
    assert frame.shape == (1, 40, 60, 3) and frame.dtype == np.uint8 and frame.flags.c_contiguous
    out = tmp_path / "new" / "out"
    classes = cv2.imread(str(out / "a.photo_classes.png"), cv2.IMREAD_UNCHANGED)
    assert classes.shape == (81, 33) and not classes[:39].any() and classes[42:].all()
    overlay = cv2.imread(str(out / "a.photo_overlay.png"))[..., ::-1].astype(int)
    colours = np.array(FACTS["palette"])[classes]
    assert np.abs(overlay - (picture + colours) / 2).max() <= 1
    line = capsys.readouterr().out
    assert "road " in line and "sky " in line and line.count("%") == 2


def test_sizes_of_a_dynamic_network(program, monkeypatch):
    dynamic = {"multiple": 64, "least": [320, 576], "most": [512, 1024]}
    found, _ = network(program, monkeypatch, dynamic=dynamic)
    assert found.size((360, 640)) == (384, 640) and found.size((10, 5000)) == (320, 1024)
    scaling = {"short_side": 400, "long_side": 900}
    found, _ = network(program, monkeypatch, dynamic=dynamic, scaling=scaling)
    assert found.size((800, 1300)) == (384, 640) and found.size((1000, 3000)) == (320, 896)
    fixed, _ = network(program, monkeypatch)
    assert fixed.size((360, 480)) == (40, 60)


def test_an_engine_takes_fewer_sizes_than_its_source(program, monkeypatch):
    dynamic = {"multiple": 64, "least": [320, 576], "most": [512, 8192]}

    def run(frame):
        return frame[..., 0]

    run.limits = ((320, 576), (512, 2048))
    facts = json.dumps(FACTS | {"dynamic": dynamic})
    monkeypatch.setitem(program.RUNTIMES, ".engine", lambda path: (run, facts))
    assert program.Network("net.engine").size((400, 4000)) == (384, 2048)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"output": "logits"}, "no class map"),
        ({"format": "x"}, "no class map"),
        (None, "does not say what it is"),
        ([], "does not say what it is"),
        ({"format": "rtseg-export-1"}, "does not say what it is"),
    ],
    ids=str,
)
def test_other_files_are_refused(program, monkeypatch, changes, words):
    facts = FACTS | changes if words == "no class map" else changes
    monkeypatch.setitem(program.RUNTIMES, ".onnx", lambda path: (None, json.dumps(facts)))
    with pytest.raises(SystemExit, match=words):
        program.Network("net.onnx")
    with pytest.raises(SystemExit, match=r"net.pt2 is none of .onnx, .xml, .engine"):
        program.Network("net.pt2")


def test_a_runtime_that_is_not_there(program, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(SystemExit, match=r"net.engine needs tensorrt, which is not installed"):
        program.Network("net.engine")


def test_the_description_beside_an_engine(program, tmp_path):
    (tmp_path / "net_8x8.json").write_text("{}")
    for engine in ("net_8x8.engine", "net_8x8.tensorrt.engine"):
        assert program.json_beside(str(tmp_path / engine)) == str(tmp_path / "net_8x8.json")
    with pytest.raises(SystemExit, match="must lie beside"):
        program.json_beside(str(tmp_path / "other.engine"))


def test_its_command_line_says_what_is_wrong(tmp_path):
    words = [sys.executable, SOURCE, "net.onnx", "photo.jpg"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr == "error: net.onnx does not exist\n"


def wild(folder):
    """Pictures as cameras and programs leave them, by name."""
    from PIL import Image

    folder.mkdir()
    rng = np.random.default_rng(0)
    small = cv2.resize(rng.integers(0, 256, (12, 16, 3), np.uint8), (160, 120))
    upright = Image.Exif()
    upright[0x0112] = 6
    Image.fromarray(small).save(folder / "turned.png", exif=upright)
    cv2.imwrite(str(folder / "deep.png"), small[..., 0].astype(np.uint16) * 257)
    cv2.imwrite(str(folder / "grey.png"), small[..., 0])
    Image.fromarray(small).quantize(16).save(folder / "palette.png")
    Image.fromarray(np.dstack([small, small[..., :1]])).save(folder / "größe.png")
    return sorted(folder.iterdir())


def test_opencv_and_pillow_make_the_same_of_a_picture(program, monkeypatch, tmp_path):
    files = wild(tmp_path / "wild")
    sizes = [(40, 60), (333, 517), (7, 5)]

    def read():
        pictures = [program.read(str(file)) for file in files]
        return pictures, [program.resized(p, size, smooth=True) for p in pictures for size in sizes]

    by_opencv = read()
    without_opencv(program, monkeypatch)
    by_pillow = read()
    for ours, theirs in zip(by_opencv, by_pillow, strict=True):
        for one, other in zip(ours, theirs, strict=True):
            assert one.shape == other.shape and one.dtype == other.dtype == np.uint8
            assert np.abs(one.astype(int) - other).max() <= 1
    assert by_opencv[0][[f.name for f in files].index("turned.png")].shape == (160, 120, 3)
    classes = np.random.default_rng(1).integers(0, 9, (33, 50), np.uint8)
    for size in sizes:
        expected = cv2.resize(classes, size[::-1], interpolation=cv2.INTER_NEAREST)
        assert np.array_equal(program.resized(classes, size, smooth=False), expected)


@pytest.mark.parametrize("reader", ["OpenCV", "Pillow"])
def test_what_cannot_be_read_is_named_and_the_others_go_on(
    reader, program, monkeypatch, tmp_path, capsys
):
    if reader == "Pillow":
        without_opencv(program, monkeypatch)
    network(program, monkeypatch)
    (tmp_path / "net.onnx").write_text("")
    (tmp_path / "text.jpg").write_text("no picture")
    (tmp_path / "empty.jpg").write_text("")
    good = wild(tmp_path / "wild")[0]
    bad = [tmp_path / name for name in ("text.jpg", "empty.jpg", "none.png")]
    words = [tmp_path / "net.onnx", *bad, good]
    monkeypatch.setattr(sys, "argv", ["run.py", *map(str, words), "--out", str(tmp_path / "out")])
    assert program.main() == 1
    told = capsys.readouterr()
    lines = told.err.splitlines()
    assert [line.rpartition(": ")[2] for line in lines] == [
        "is not a picture, or damaged", "is not a picture, or damaged", "does not exist"
    ]  # fmt: skip
    assert told.out.startswith(f"{good}: ") and len(list((tmp_path / "out").iterdir())) == 2


def test_what_a_runtime_cannot_run_and_what_cannot_be_written(
    program, monkeypatch, tmp_path, capsys
):
    """One sentence each; nothing is half written."""
    (tmp_path / "net.onnx").write_text("")
    one, two = wild(tmp_path / "wild")[:2]

    def run(frame):
        if not calls:
            calls.append(1)
            raise RuntimeError("deep inside\nshapes do not match")
        return frame[..., 0] % 2

    calls = []
    monkeypatch.setitem(program.RUNTIMES, ".onnx", lambda path: (run, json.dumps(FACTS)))
    out = tmp_path / "out"
    words = ["run.py", tmp_path / "net.onnx", one, two, "--out", out]
    monkeypatch.setattr(sys, "argv", list(map(str, words)))
    assert program.main() == 1
    assert capsys.readouterr().err == f"error: {one}: shapes do not match\n"
    assert len(list(out.iterdir())) == 2
    there = open

    class Full:
        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def write(self, data):
            there(self.path, "wb").close()
            raise OSError(28, "No space left on device")

    def opened(path, mode="r", **more):
        if not str(path).endswith(".part"):
            return there(path, mode, **more)
        Full.path = path
        return Full()

    monkeypatch.setattr("builtins.open", opened)
    words[-1] = tmp_path / "full"
    monkeypatch.setattr(sys, "argv", list(map(str, words)))
    with pytest.raises(SystemExit, match="full cannot be written to: No space left"):
        program.main()
    assert not list((tmp_path / "full").iterdir())


def test_names_that_cannot_be_are_refused_before_the_network_is_opened(tmp_path):
    (tmp_path / "net.onnx").write_text("")
    (tmp_path / "net.xml").write_text("")
    (tmp_path / "a").mkdir()
    for name in ("x.jpg", "a/x.png"):
        (tmp_path / name).write_text("")

    def told(*words):
        done = subprocess.run(
            [sys.executable, SOURCE, *words], cwd=tmp_path, capture_output=True, text=True
        )
        assert done.returncode == 1 and done.stderr.count("\n") == 1, done.stderr
        return done.stderr

    assert "a is a folder; name its pictures" in told("net.onnx", "a")
    assert "a is a folder" in told("a", "x.jpg")
    assert "x.jpg and a/x.png would both become x_classes.png" in told(
        "net.onnx", "x.jpg", "a/x.png"
    )
    assert "--out x.jpg: " in told("net.onnx", "x.jpg", "--out", "x.jpg")
    assert "net.bin does not exist; it belongs to net.xml" in told("net.xml", "x.jpg")


@pytest.mark.parametrize(("ending", "package"), [(".onnx", "onnxruntime"), (".xml", "openvino")])
def test_a_file_that_is_none(ending, package, program, tmp_path):
    pytest.importorskip(package, reason=f"{package} is not installed (see the extras)")
    for name in (f"net{ending}", "net.bin"):
        (tmp_path / name).write_bytes(b"nothing of the kind")
    with pytest.raises(SystemExit, match=f"net{ending} cannot be opened: "):
        program.Network(str(tmp_path / f"net{ending}"))
