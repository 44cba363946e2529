"""A small checkpoint, pictures to predict with it, and what has to come of them."""

import csv
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from pictures import saved
from videos import scenes

from datasets import EvalTransform
from models import build_model, fuse
from utils.checkpoint import save_checkpoint
from utils.predictor import Predictor

OPTIONS = {"base_channels": 8, "context_channels": 8, "head_channels": 8}
NAMES = ["sky", "größe", "道路", "tree"]
PALETTE = [[10, 20, 250], [200, 30, 40], [120, 120, 110], [20, 160, 30]]
FACTS = {
    "architecture": "pidnet_s", "options": OPTIONS, "dataset": "own", "class_names": NAMES,
    "palette": PALETTE, "input": {"std": [0.3, 0.25, 0.2]},
}  # fmt: skip
SCRIPT = "tools/predict.py"
DRAWN = ("sky", "größe", "class 2", "tree")  # as legends have them


def network(classes: int = len(NAMES)) -> torch.nn.Module:
    """One whose norms do something and whose class maps differ from place to place."""
    torch.manual_seed(0)
    model = build_model("pidnet_s", classes, **OPTIONS)
    with torch.no_grad():
        for _ in range(8):
            model.forward_train(torch.randn(2, 3, 64, 64))
    return model.eval()


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "best.pt"
    save_checkpoint(path, FACTS | {"model": network().state_dict()})
    return path


@pytest.fixture(scope="session")
def predictor() -> Predictor:
    """What the script is compared with."""
    transform = EvalTransform.from_facts(FACTS["input"])
    return Predictor(fuse(network()), transform, NAMES, PALETTE, device="cpu")


@pytest.fixture
def frames(tmp_path) -> Path:
    """A folder with three pictures of several sizes."""
    (tmp_path / "frames").mkdir()
    for number, scene in enumerate((*scenes(2, 50, 70), *scenes(1, 131, 64))):
        (tmp_path / f"frames/{number}.png").write_bytes(saved(scene, "PNG"))
    return tmp_path / "frames"


def png(path: Path) -> np.ndarray:
    picture = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_UNCHANGED)
    return picture if picture.ndim == 2 else np.ascontiguousarray(picture[..., ::-1])


def files(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def table(out: Path) -> list[dict[str, str]]:
    with open(out / "shares.csv", encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))
