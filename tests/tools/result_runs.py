"""Small rows of a table of runs, and the records that they would leave."""

import json
from pathlib import Path
from types import SimpleNamespace

from utils.results import wanted_runs

CFG = "configs/synthetic/rtlinearformer_slim_synthetic.yaml"
SMALL = {
    "MODEL.OPTIONS.base_channels": 8,
    "MODEL.OPTIONS.attention_channels": 16,
    "MODEL.OPTIONS.head_channels": 16,
    "MODEL.OPTIONS.context_channels": 16,
    "DATASET.SIZE": "(96,64)",
    "TRAIN.IMAGE_SIZE": "(96,64)",
    "DATASET.TRAIN_SET": "0:12",
    "DATASET.TEST_SET": "100:104",
    "TRAIN.BATCH_SIZE_PER_GPU": 4,
    "WORKERS": 0,
    "TRAIN.END_EPOCH": 2,
    "TRAIN.WARMUP_STEPS": 2,
    "TEST.OVERLAYS": 0,
}


def record_of(results, name, *, opts=(), seed=304, score="200:204", **row):
    """A record as a finished run of such a row has left it."""
    table = {"score": score, "runs": {name: {"cfg": [CFG], "set": SMALL, "seeds": [seed]} | row}}
    (run,) = wanted_runs(table, "t")
    args = SimpleNamespace(opts=list(opts), state=Path("nowhere"))
    return {
        "name": name, "title": name, "seed": seed, "architecture": "pidnet_s", "scored": score,
        "curve": [{"epoch": e, "step": 3 * e, "miou": 0.1 * e, "seconds": 60.0} for e in (1, 2)],
        "environment": {"device": "CPU", "cpu_threads": 1}, "best": {"miou": 0.2}, "minutes": 2.0,
        "test": {"mIoU": 0.5, "classes": {"sky": {"IoU": 0.9}, "pole": {"IoU": None}}},
        "weights": {"sha256": "0", "files": []}, "settings": results.settings_of(run, args),
    }  # fmt: skip


def put(folder, *records):
    folder.mkdir(exist_ok=True, parents=True)
    for record in records:
        (folder / f"{record['name']}-{record['seed']}.json").write_text(json.dumps(record))
