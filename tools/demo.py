"""From nothing to a trained network with pictures: train, score and time on drawn street scenes.

    python tools/demo.py

Runs the three public commands on configs/synthetic/rtlinearformer_slim_synthetic.yaml and says
where the results are. A second run goes on from the first and only scores and times again.
"""

import argparse
import shlex
import subprocess
import sys
import time
from pathlib import Path

import _init_paths

from configs import get_config
from configs.loader import run_folder
from datasets.synthetic import draw_scene
from utils.visualize import write_png

CONFIG = "configs/synthetic/rtlinearformer_slim_synthetic.yaml"
DRAWN = range(300_000, 300_006)  # scenes that are left as pictures


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.parse_args()  # the demo takes none
    config = get_config(_init_paths.ROOT / CONFIG)
    width, height = config.DATASET.SIZE
    folder = Path(run_folder(config, CONFIG))
    speed = folder / "speed.json"
    began = time.perf_counter()
    for command in (
        f"tools/train.py --cfg {CONFIG} TRAIN.RESUME True",
        f"tools/eval.py --cfg {CONFIG} TEST.OVERLAYS 6",
        f"models/speed/speed.py --a {config.MODEL.NAME} --c 11 --r {height} {width} "
        f"--seconds 1 --threads 1 --form published eager --out {shlex.quote(speed.as_posix())}",
    ):
        print(f"\n$ python {command}", flush=True)
        status = subprocess.run(
            [sys.executable, *shlex.split(command)], cwd=_init_paths.ROOT, check=False
        ).returncode
        if status:
            return status
    for index in DRAWN:  # twice as large, as photographs would be larger, too
        picture, _ = draw_scene(index, height=2 * height, width=2 * width)
        write_png(_init_paths.ROOT / folder / f"scenes/{index}.png", picture)
    minutes, seconds = divmod(round(time.perf_counter() - began), 60)
    print(f"""
Done in {minutes} min {seconds} s. Look at
  {folder}/overlays_100000-100100/   scenes no training saw: image, truth, prediction, errors
  {folder}/curve.png                 loss and mIoU over the epochs
  {folder}/eval_100000-100100.txt    IoU, precision and recall of every class
  {speed}                milliseconds and frames per second on this machine
  {folder}/scenes/             six more scenes, for tools/predict.py
Next: `make web`, a page that shows what the network makes of pictures of yours; README.md, "Train
on CamVid"; or another network on the same scenes, by the same recipe:
  python tools/train.py --cfg {CONFIG} MODEL.NAME pidnet_s OUTPUT_DIR output/pidnet""")
    return 0


if __name__ == "__main__":
    _init_paths.run_main(main)
