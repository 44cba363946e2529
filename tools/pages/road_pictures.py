"""Write the pictures of README.md's road from the demo's run and from the record of exported files.

    python tools/demo.py
    python tools/pages/road_pictures.py

road_train.png and road_eval.png are what training and evaluation left in the run folder;
road_predict.jpg is what `tools/predict.py` makes of the first scenes that the demo has drawn;
road_export.png shows the times of docs/records/exports_cpu_512x1024.json. web.png is the screen of
the page of `make web`, taken by `tests/tools/test_web.py`.
"""

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import _init_paths
import cv2
import matplotlib
import numpy as np
from demo import CONFIG
from matplotlib.figure import Figure

from configs import get_config
from configs.loader import run_folder
from utils.errors import InputError
from utils.records import atomic_file, atomic_write

ROOT = _init_paths.ROOT
IMAGES = ROOT / "docs/images"
RECORD = ROOT / "docs/records/exports_cpu_512x1024.json"
SCENES = 3  # side by side


def main() -> int:
    folder = ROOT / run_folder(get_config(ROOT / CONFIG), CONFIG)
    (confusion,) = list(folder.glob("confusion_*.png"))[:1] or [folder / "confusion.png"]
    for path, name in ((folder / "curve.png", "road_train.png"), (confusion, "road_eval.png")):
        if not path.is_file():
            raise InputError(f"{path} does not exist; python tools/demo.py writes it")
        shutil.copyfile(path, IMAGES / name)
    atomic_write(IMAGES / "road_predict.jpg", predicted(folder / "best.pt"))
    with atomic_file(IMAGES / "road_export.png") as stream:
        plot_times(json.loads(RECORD.read_text(encoding="utf-8"))).savefig(
            stream, format="png", dpi=100
        )
    print(f"wrote road_*.png and road_predict.jpg in {IMAGES}")
    return 0


def predicted(weights: Path) -> bytes:
    """Overlays of scenes beside each other, as JPEG."""
    script, scenes = str(ROOT / "tools/predict.py"), weights.with_name("scenes")
    with tempfile.TemporaryDirectory() as out:
        words = [str(weights), str(scenes), "--out", out, "--short-side", "180"]
        subprocess.run([sys.executable, script, *words], check=True)
        files = sorted(Path(out, "overlay").iterdir())[:SCENES]
        pictures = [cv2.imread(str(file)) for file in files]
    height = max(picture.shape[0] for picture in pictures)
    filled = [
        cv2.copyMakeBorder(p, 0, height - len(p), 4, 4, cv2.BORDER_CONSTANT, value=(255,) * 3)
        for p in pictures
    ]
    return cv2.imencode(".jpg", np.hstack(filled), [cv2.IMWRITE_JPEG_QUALITY, 85])[1].tobytes()


def plot_times(record: dict[str, Any]) -> Figure:
    """Times of the files of every network as bars, the fastest at the bottom."""
    networks = list(dict.fromkeys(key.split()[0] for key in record["times"]))
    with matplotlib.rc_context({"font.size": 9, "axes.spines.top": False}):
        figure = Figure(figsize=(8, 3.2), layout="constrained")
        for axes, name in zip(
            figure.subplots(1, len(networks), squeeze=False)[0], networks, strict=True
        ):
            rows = {
                key.split(" ", 1)[1]: times["median_ms"]
                for key, times in record["times"].items()
                if key.split()[0] == name
            }
            order = sorted(rows, key=rows.__getitem__, reverse=True)
            bars = axes.barh(order[::-1], [rows[key] for key in order[::-1]], color="tab:blue")
            axes.bar_label(bars, fmt="%.0f", padding=2)
            axes.set_title(name)
            axes.set_xlabel("ms per frame, median")
            axes.spines["right"].set_visible(False)
        height, width = record["size"]
        facts = record["environment"]
        figure.suptitle(f"{width}x{height} on {facts['device']}, {facts['cpu_threads']} threads")
    return figure


if __name__ == "__main__":
    _init_paths.run_main(main)
