"""docs/rtlinearformer.md, from the record of tools/pages/shapes.py."""

import statistics
from pathlib import Path
from typing import Any

from utils.records import atomic_write

HEAD = """# The shape of RTLinearFormer

<!-- Written by tools/pages/shapes.py --page; edit tools/pages/shapes_page.py. -->

What the paper leaves open are options of the network (`models/rtlinearformer.py`). Their defaults
were chosen here, to be as fast as published beside RTFormer (1.33 times) without losing accuracy.
Each row from "{first}" down to "{chosen}" changes one thing more; **{chosen}** is today's
shape, and each row below it differs from that in one thing.

What the steps are for: norms behind convolutions fold into them, in front of a ReLU they do not.
A ReLU behind a residual sum can run within the convolution, as its bias and the sum do. Adding the
branches halves the head's input. At 1/8 two 3x3 convolutions of half width take less time on tensor
cores than a depthwise one, which moves four times their bytes. A bilinear resize to 1/8 takes twice
as long as a 3x3 convolution there; the cross attention brings the low branch to the high one, too.

Times on a card are **predictions**: a list of the kernels that PyTorch launches, each with a floor
and rates read off profiles on an H200 (`tools/pages/kernel_model.py`). "Joined" assumes that bias,
residual sum and ReLU run within the convolution before them (`utils/fused_convolutions.py`), for
RTFormer too. Counts and predictions are of today's implementation. Speed is RTFormer's time over
the row's.
"""
NETWORKS = {"base": "RTLinearFormer-Base", "slim": "RTLinearFormer-Slim"}
KINDS = ("tf32, joined", "fp16, joined", "tf32", "fp16")
DATA = {
    "rtlinearformer_slim_synthetic": "drawn street scenes",
    "rtlinearformer_slim_camvid_360x480": "CamVid val, 480x360",
}


def write_page(path: Path, record: dict[str, Any], chosen: str, check: bool) -> int:
    """Write the page, or with `check` return 1 if it is not what the record gives."""
    first = next(name for name in record["networks"]["base"] if name != "rtformer")
    text = HEAD.format(first=first, chosen=chosen) + _fidelity(record)
    text += "".join(_networks(record, width, chosen) for width in record["networks"])
    text += _cpus(record, chosen) + _trained(record)
    if not check:
        atomic_write(path, text)
        print(f"wrote {path}")
        return 0
    return int(not path.is_file() or path.read_text(encoding="utf-8") != text)


def _fidelity(record: dict[str, Any]) -> str:
    """How well the model repeats what was measured."""
    lines = [
        "",
        "How the model repeats measured times (1024x2048, one image, fused, channels-last, CUDA "
        f"graph, {record['measured']['device']}), in milliseconds:",
        "",
        "| Network | TF32 measured | predicted | fp16 measured | predicted |",
        "|---|--:|--:|--:|--:|",
    ]
    for row in record["measured"]["networks"]:
        cells = (row["tf32"], row["tf32_predicted"], row["fp16"], row["fp16_predicted"])
        lines.append(f"| {row['name']} | {' | '.join(f'{cell:.2f}' for cell in cells)} |")
    return "\n".join(lines) + "\n"


def _networks(record: dict[str, Any], width: str, chosen: str) -> str:
    rows = record["networks"][width]
    high, wide = record["size"]
    lines = [
        "",
        f"## {NETWORKS[width]}",
        "",
        f"19 classes, one image of {wide}x{high}; counted and predicted.",
        "",
        "| Shape | Parameters, M | MACs, G | Bytes joined, fp16, GB | Kernels joined "
        "| TF32 joined, predicted ms (speed) | fp16 joined, predicted ms (speed) "
        "| TF32 plain, predicted speed | fp16 plain, predicted speed |",
        f"|---|{'--:|' * 8}",
    ]
    for name, row in rows.items():
        times = {kind: row[kind]["milliseconds"] for kind in KINDS}
        speeds = {kind: rows["rtformer"][kind]["milliseconds"] / times[kind] for kind in KINDS}
        cells = [
            _title(name, width, chosen),
            f"{row['parameters'] / 1e6:.2f}",
            f"{row['macs'] / 1e9:.1f}",
            f"{row['fp16, joined']['bytes'] / 1e9:.2f}",
            f"{row['fp16, joined']['kernels']}",
            *(f"{times[kind]:.2f} ({speeds[kind]:.2f})" for kind in KINDS[:2]),
            *(f"{speeds[kind]:.2f}" for kind in KINDS[2:]),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _title(name: str, width: str, chosen: str) -> str:
    """What a row of a table is called."""
    return {"rtformer": f"RTFormer-{width.title()}", chosen: f"**{chosen}**"}.get(name, name)


def _cpus(record: dict[str, Any], chosen: str) -> str:
    """Measured speed beside RTFormer, on every CPU of the record."""
    high, wide = record["cpu_size"]
    machines = [
        f"{name}: {found['environment']['cpu_threads']} threads, torch "
        f"{found['environment']['torch']}, commit {found['environment']['commit']}"
        for name, found in record["cpus"].items()
    ]
    lines = [
        "",
        "## Measured on CPUs",
        "",
        f"Speed, one image of {wide}x{high}, median ratio of the rounds: all networks in turn in "
        "one process, in CPU time of the process, which other programs disturb little. "
        f"{'; '.join(machines)}. A machine without a number has not run that shape.",
    ]
    columns = [(name, kind) for name in record["cpus"] for kind in ("float32", "bf16")]
    for width, title in NETWORKS.items():
        lines += [
            "",
            f"| {title} | {' | '.join(f'{name}, {kind}' for name, kind in columns)} |",
            f"|---|{'--:|' * len(columns)}",
        ]
        for shape in record["networks"][width]:
            cells = []
            for machine, kind in columns:
                row = record["cpus"][machine]["networks"][width][kind].get(shape)
                cells.append(f"{row['speed']['median']:.2f}" if row else "")
            lines.append(f"| {_title(shape, width, chosen)} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _trained(record: dict[str, Any]) -> str:
    """mIoU of the slim network under one recipe; one run per seed."""
    lines = [
        "",
        "## Accuracy",
        "",
        "mIoU in percent after the last epoch, slim network from random weights, one run per seed "
        "on a CPU (bf16). Such short runs only show that a shape trains as well as another.",
        "",
        "| Shape | Data | Epochs | Learning rate | Runs | mIoU (mean) |",
        "|---|---|--:|--:|--:|---|",
    ]
    for name, runs in record.get("trained", {}).items():
        for config, data in DATA.items():
            found = sorted((r for r in runs if r["config"] == config), key=lambda r: r["seed"])
            if found:
                scores = [100 * run["miou"] for run in found]
                mean = f" ({statistics.mean(scores):.2f})" if len(scores) > 1 else ""
                listed = ", ".join(f"{score:.2f}" for score in scores)
                lines.append(
                    f"| {name} | {data} | {found[0]['epochs']} | {found[0]['lr']} "
                    f"| {len(found)} | {listed}{mean} |"
                )
    return "\n".join(lines) + "\n"
