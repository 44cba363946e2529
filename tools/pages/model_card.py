"""Put the weights of a finished run into pretrained_models/, with a card that its record fills.

    python tools/pages/model_card.py slim_scenes-304 camvid/rtlinearformer_slim

takes docs/results/slim_scenes-304.json and the weights beside it, and writes
pretrained_models/camvid/rtlinearformer_slim.pt and .md. --check compares the card with the record.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import _init_paths
import yaml

from utils.records import atomic_write
from utils.results import join_file, machine, network_options

RESULTS = _init_paths.ROOT / "docs/results"
FOLDER = _init_paths.ROOT / "pretrained_models"
DATASETS = {"camvid": "CamVid"}  # whose terms the card states
PREDICT = "python tools/predict.py pretrained_models/{} photographs/ --out output/predicted"
TRAIN = "python tools/results.py docs/results.yaml {} --state output/results"
CARD = """# {name}

<!-- Written by tools/pages/model_card.py; edit that program. -->

`{architecture}` for the classes of {dataset}, in half precision; weights, class names and colours
are in `{file}`, which needs nothing else:

```bash
{predict}
```

`--short-side` brings photographs to the size that it has learnt from; larger ones come out worse
without. Images of your own ([docs/your_own_data.md](../../docs/your_own_data.md)) start from it by

```text
MODEL.PRETRAINED pretrained_models/{path} MODEL.RESET "('head','aux_head')"{options}
```

| | |
|---|---|
| Trained on | `{train_set}` of {dataset}, {size} pixels, from {start} |
| Epoch chosen by | {chosen} |
| mIoU | {miou} % on `{scored}`, scored once, one scale, no flip |
| Recipe | {title}: [{recipe}](../../{recipe}), {epochs} epochs in {minutes:.0f} minutes |
| Machine | {machine}, PyTorch {torch} |
| SHA-256 | `{sha256}` |

IoU of the classes, %: {classes}.

This trains it again; other machines round otherwise, so that it ends near this score, not at these
bits:

```bash
{train}
```

## What it is for

For trying this repository on a photograph of a street from a car, and as a start for images of your
own. It has seen some minutes of driving in one town in good weather, and no other picture. What is
rare there (see above) it often misses. Not for anything on which safety depends.

## Terms

CamVid (Brostow, Shotton, Fauqueur and Cipolla, ECCV 2008; Brostow, Fauqueur and Cipolla, Pattern
Recognition Letters 2009) is for research. So take these weights for research alone; the
repository's licence covers the code. No image of CamVid is in them or in this repository.
"""


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", help="record in docs/results, without .json")
    parser.add_argument("target", help="below pretrained_models/, without ending")
    parser.add_argument("--check", action="store_true", help="only compare the card")
    args = parser.parse_args()
    record = json.loads((RESULTS / f"{args.run}.json").read_text(encoding="utf-8"))
    card = FOLDER / f"{args.target}.md"
    table = yaml.safe_load(RESULTS.with_suffix(".yaml").read_text(encoding="utf-8"))
    text = fill(record, f"{args.target}.pt", table)
    if args.check:
        return int(not card.is_file() or card.read_text(encoding="utf-8") != text)
    join_file(record, RESULTS, FOLDER / f"{args.target}.pt")
    atomic_write(card, text)
    print(f"wrote {card} and the weights beside it")
    return 0


def fill(record: dict[str, Any], path: str, table: dict[str, Any]) -> str:
    """The card of a record of `tools/results.py` by a row of `table`."""
    config, best, facts = yaml.safe_load(record["config"]), record["best"], record["environment"]
    width, height = config["TRAIN"]["IMAGE_SIZE"]
    classes = record["test"]["classes"]
    rows = [record["name"]]
    while start := table["runs"][rows[0]].get("start"):
        rows.insert(0, start)
    return CARD.format(
        name=Path(path).stem,
        file=Path(path).name,
        path=path,
        architecture=record["architecture"],
        dataset=DATASETS[config["DATASET"]["DATASET"]],
        train_set=config["DATASET"]["TRAIN_SET"],
        size=f"{width}x{height}",
        start="drawn scenes" if record["settings"].get("start") else "random weights",
        chosen=f"{100 * best['miou']:.2f} % on {best['list']}, after epoch {best['epoch']}",
        miou=f"{100 * record['test']['mIoU']:.2f}",
        scored=record["scored"],
        title=record["title"],
        recipe=record["command"][record["command"].index("--cfg") + 1],
        epochs=record["curve"][-1]["epoch"],
        minutes=record["minutes"],
        machine=machine(facts),
        torch=facts["torch"],
        sha256=record["weights"]["sha256"],
        classes=", ".join(f"{n} {100 * c['IoU']:.1f}" for n, c in classes.items() if c["IoU"]),
        predict=f"{PREDICT.format(path)} --short-side {height}",
        options="".join(f" MODEL.OPTIONS.{option}" for option in network_options(record)),
        train=TRAIN.format(" ".join(f"--row {row}" for row in rows)),
    )


if __name__ == "__main__":
    _init_paths.run_main(main)
