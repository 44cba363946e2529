"""The project as a package: from a wheel, and through torch.hub."""

import shutil
import subprocess
import sys
import venv
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from datasets import EvalTransform
from models import build_model, fuse
from utils.checkpoint import save_checkpoint
from utils.predictor import Predictor

ROOT = Path(__file__).resolve().parents[2]
OPTIONS = {"base_channels": 4, "context_channels": 6, "head_channels": 8}
NAMES, PALETTE = ["apple", "pear", "plum"], [[255, 0, 0], [0, 255, 0], [0, 0, 255]]
# As a program of somebody who has folders of our names.
PROGRAM = """
import sys
{get}
import cv2
import models, utils
assert models.MINE and utils.MINE
image = cv2.imread("picture.png")[..., ::-1].copy()
classes = predictor(image)
assert predictor.names == ("apple", "pear", "plum"), predictor.names
assert predictor.overlay(image).shape == image.shape
cv2.imwrite("classes.png", classes)
"""


@pytest.fixture
def place(tmp_path):
    """A folder with weights, a picture, modules of its own, and the class map to expect."""
    torch.manual_seed(0)
    model = build_model("pidnet_s", 3, **OPTIONS)
    content = {"architecture": "pidnet_s", "options": OPTIONS, "dataset": "fruit"}
    content |= {"class_names": NAMES, "palette": PALETTE, "model": model.state_dict()}
    save_checkpoint(tmp_path / "best.pt", content)
    image = np.random.default_rng(0).integers(0, 256, (70, 90, 3), np.uint8)
    cv2.imwrite(str(tmp_path / "picture.png"), image[..., ::-1])
    for name in ("models", "utils"):
        (tmp_path / f"{name}.py").write_text("MINE = True\n")
    expected = Predictor(fuse(model.eval()), EvalTransform(), NAMES, PALETTE, device="cpu")(image)
    return tmp_path, expected


def check(python, place, get):
    folder, expected = place
    result = subprocess.run(
        [python, "-c", PROGRAM.format(get=get)], cwd=folder, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    classes = cv2.imread(str(folder / "classes.png"), cv2.IMREAD_UNCHANGED)
    assert (classes == expected).all() and len(np.unique(expected)) > 1


@pytest.mark.medium
def test_torch_hub(place):
    call = f"torch.hub.load({str(ROOT)!r}, 'load', 'best.pt', source='local')"
    check(sys.executable, place, f"import torch; predictor = {call}")


@pytest.mark.slow
def test_a_wheel_in_an_environment_of_its_own(place, tmp_path):
    """What the wheel needs comes from this environment, where the project is not installed."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    source = tmp_path / "source"  # building leaves files behind
    shutil.copytree(ROOT, source, ignore=shutil.ignore_patterns(".*", "output", "data", "build"))
    wheels = tmp_path / "wheels"
    subprocess.run([*pip, "wheel", "--no-deps", "-w", wheels, source], check=True)
    (wheel,) = wheels.iterdir()
    home = tmp_path / "environment"
    venv.create(home, with_pip=False)
    (site,) = home.glob("lib/python*/site-packages")
    subprocess.run([*pip, "install", "--no-deps", "--target", site, wheel], check=True)
    others = next(path for path in sys.path if path.endswith("site-packages"))
    (site / "others.pth").write_text(others + "\n")
    get = "import rtseg; predictor = rtseg.load('best.pt')"
    check(home / "bin" / "python", place, get)
    get = """
from rtseg.models import build_model, fuse
from rtseg.models.weights import load_weights
import rtseg.datasets, rtseg.utils, rtseg
assert not any(module in sys.modules for module in ("datasets", "configs"))
predictor = rtseg.load("best.pt", device="cpu", size=(70, 90), runtime="eager")
"""
    check(home / "bin" / "python", place, get)
