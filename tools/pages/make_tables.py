"""Write the generated tables of the documentation.

    python tools/pages/make_tables.py [--check]

Fills README.md between the zoo markers, pretrained_models/README.md between the manifest markers
and docs/export.md between the exports markers (the record of tools/pages/benchmark_exports.py).
Parameters and multiply-adds are counted from the registry's networks; published accuracy
and speed are copied from docs/published.yaml; agreement with official code is read from
docs/records/parity.json (tools/verify_parity.py tests/golden --json); files are those of
pretrained_models/manifest.yaml; accuracy measured here is the best row of docs/results.yaml, by the
records in docs/results/. --check writes nothing and exits with 1 if a page is not up to date.
"""

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import _init_paths
import torch
import yaml
from manifest import read_manifest

from models import build_backbone, build_model, fuse, list_backbones, list_models
from utils.benchmark import count_macs, count_parameters
from utils.errors import InputError
from utils.records import atomic_write
from utils.results import by_row, mean_and_spread, network_options, read_results

SIZE = (1024, 2048)
CLASSES = 19
DOCS = _init_paths.ROOT / "docs"


def main() -> int:
    parser = argparse.ArgumentParser(description="Write the generated tables of the documentation.")
    parser.add_argument("--check", action="store_true", help="only compare; exit 1 if outdated")
    args = parser.parse_args()
    outdated = 0
    for page, name, make in (
        ("README.md", "zoo", zoo_table),
        ("pretrained_models/README.md", "manifest", manifest_table),
        ("docs/export.md", "exports", exports_table),
    ):
        path = _init_paths.ROOT / page
        text = path.read_text(encoding="utf-8")
        fresh = replace_table(text, name, make(), page)
        if fresh == text:
            continue
        outdated += 1
        if args.check:
            print(f"{page} is not up to date; run python tools/pages/make_tables.py")
        else:
            atomic_write(path, fresh)
            print(f"wrote the {name} table of {page}")
    return int(args.check and outdated > 0)


def replace_table(text: str, name: str, table: str, page: str) -> str:
    """`text` with `table` between the markers of `name`."""
    begin, end = (
        f"<!-- {name}: written by tools/pages/make_tables.py -->",
        f"<!-- end of {name} -->",
    )
    if text.count(begin) != 1 or text.count(end) != 1:
        raise InputError(f"{page} must hold the markers {begin} and {end} once each")
    head, rest = text.split(begin)
    return f"{head}{begin}\n{table}\n{end}{rest.split(end)[1]}"


def zoo_table() -> str:
    """Markdown table of all architectures, and of backbones that stand alone, cheapest first."""
    published = yaml.safe_load((DOCS / "published.yaml").read_text("utf-8"))
    verified, scored = verified_architectures(), measured_scores()
    alone = [name for name in list_backbones() if name not in list_models()]
    unknown = sorted(set(published) - set(list_models()) - set(alone))
    if unknown:
        raise InputError(f"docs/published.yaml names {', '.join(unknown)}, which is not registered")
    head = [
        "| Architecture | Parameters, M | MACs, G | Agrees with official code to "
        "| CamVid test, measured here | Cityscapes val, published | CamVid test, published "
        "| ADE20K val, published | FPS, published | Sources |",
        f"|---|{'--:|' * 8}---|",
    ]
    rows = []
    for name in sorted([*list_models(), *alone]):
        with torch.device("meta"):
            model = build_backbone(name) if name in alone else build_model(name, CLASSES)
        deployed = fuse(model)
        macs = count_macs(deployed, SIZE)
        facts = published.get(name, {})
        fps = facts.get("fps", {})
        sources = dict.fromkeys(filter(None, (facts.get("source"), fps.get("source"))))
        cells = (
            f"`{name}`" + (" (backbone)" if name in alone else ""),
            f"{count_parameters(deployed) / 1e6:.2f}",
            f"{macs / 1e9:.1f}",
            verified.get(name, ""),
            scored.get(name, ""),
            *(facts.get(dataset, "") for dataset in ("cityscapes", "camvid", "ade20k")),
            " ".join(filter(None, (str(fps.get("value", "")), fps.get("hardware", "")))),
            "; ".join(sources),
        )
        rows.append((macs, f"| {' | '.join(map(str, cells))} |"))
    return "\n".join([*head, *(row for _, row in sorted(rows))])


def measured_scores() -> dict[str, str]:
    """Architecture -> the best row's mIoU on the list that docs/results.yaml scores, in percent;
    networks with options are not those that the table counts."""
    table = yaml.safe_load((DOCS / "results.yaml").read_text("utf-8"))
    records = [r for r in read_results(DOCS / "results") if r["scored"] == table["score"]]
    best: dict[str, tuple[float, str]] = {}
    for _, runs in by_row([record for record in records if not network_options(record)]):
        scores = [run["test"]["mIoU"] for run in runs]
        row = statistics.mean(scores), f"[{mean_and_spread(scores)}](docs/results.md)"
        name = runs[0]["architecture"]
        best[name] = max(row, best.get(name, row))
    return {name: text for name, (_, text) in best.items()}


def verified_architectures() -> dict[str, str]:
    """Architecture -> largest difference from official outputs, where all agree.

    Less than a millionth of the largest output is float32's own rounding, whichever it is.
    """
    path = DOCS / "records" / "parity.json"
    record: dict[str, Any] = json.loads(path.read_text("utf-8"))
    rows: dict[str, list[dict]] = {}
    for row in record["rows"]:
        name = record["fixtures"].get(row["fixture"], {}).get("architecture")
        rows.setdefault(name, []).append(row)
    return {
        name: f"{max(1e-6, *(row['difference'] for row in found)):.0e}"
        for name, found in rows.items()
        if name and all(row["verdict"] == "ok" for row in found)
    }


def manifest_table() -> str:
    """Markdown table of the published files, in the manifest's order."""
    rows = [
        "| File | Architecture | Trained on | Published score | Measured how | Source |",
        "|---|---|---|--:|---|---|",
    ]
    for key, entry in read_manifest().items():
        page = entry["source"].removeprefix("https://").split("/")
        cells = (
            f"`{key}`",
            f"`{entry['architecture']}`",
            entry["dataset"],
            entry.get("metric", ""),
            entry["protocol"] if "metric" in entry else "",
            f"[{'/'.join(page[1:3])}]({entry['source']})",
        )
        rows.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(rows)


def exports_table() -> str:
    """Markdown table of times and sizes of exported files, with the conditions before it."""
    record = json.loads((DOCS / "records/exports_cpu_512x1024.json").read_text("utf-8"))
    facts, (height, width) = record["environment"], record["size"]
    lines = [
        "",
        f"    python tools/pages/{' '.join(record['command'])}",
        "",
        f"{facts['device']}, {facts['cpu_threads']} threads, {width}x{height}, torch "
        f"{facts['torch']}: milliseconds (median) from frame to class map, and the time of the "
        "network as published (fp32, unfused, eager) over that of the file: the median of the "
        "rounds of one run.",
        "",
        "| Network | Format | Precision | ms | Published over this | Size, MB |",
        "|---|---|---|--:|--:|--:|",
    ]
    for key, times in record["times"].items():
        name, kind, precision = key.split()
        cells = [f"`{name}`", kind, precision, f"{times['median_ms']:.1f}", "", ""]
        if file := record["files"].get(key):
            cells[4:] = f"{1 / file['time_ratio']['median']:.2f}", f"{file['bytes'] / 1e6:.1f}"
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    _init_paths.run_main(main)
