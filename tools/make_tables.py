"""Write the generated tables of the documentation.

    python tools/make_tables.py [--check]

Fills the part of README.md between the zoo markers: parameters and multiply-adds are counted from
the registry's networks, published accuracy is copied from docs/published.yaml. --check writes
nothing and exits with 1 if the file is not up to date.
"""

import argparse

import _init_paths
import torch
import yaml

from models import build_model, list_models
from utils.benchmark import count_macs, count_parameters
from utils.records import atomic_write

BEGIN, END = "<!-- zoo: written by tools/make_tables.py -->", "<!-- end of zoo -->"
SIZE = (1024, 2048)
CLASSES = 19


def main() -> int:
    parser = argparse.ArgumentParser(description="Write the generated tables of the documentation.")
    parser.add_argument("--check", action="store_true", help="only compare; exit 1 if outdated")
    args = parser.parse_args()
    path = _init_paths.ROOT / "README.md"
    text = path.read_text(encoding="utf-8")
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise ValueError(f"{path} must hold the markers {BEGIN} and {END} once each")
    head, rest = text.split(BEGIN)
    fresh = f"{head}{BEGIN}\n{zoo_table()}\n{END}{rest.split(END)[1]}"
    if args.check:
        if fresh != text:
            print("README.md is not up to date; run python tools/make_tables.py")
        return int(fresh != text)
    atomic_write(path, fresh)
    print(f"wrote the table of {len(list_models())} architectures into {path}")
    return 0


def zoo_table() -> str:
    """Markdown table of all architectures."""
    published = yaml.safe_load((_init_paths.ROOT / "docs/published.yaml").read_text("utf-8"))
    unknown = sorted(set(published) - set(list_models()))
    if unknown:
        raise ValueError(f"docs/published.yaml names {', '.join(unknown)}, which is not registered")
    rows = [
        "| Architecture | Parameters, M | MACs, G | Cityscapes val, published | "
        "CamVid test, published | Source |",
        "|---|--:|--:|--:|--:|---|",
    ]
    for name in list_models():
        with torch.device("meta"):
            model = build_model(name, CLASSES).eval()
        for part in model.training_only:
            delattr(model, part)
        facts = published.get(name, {})
        cells = (
            f"`{name}`",
            f"{count_parameters(model) / 1e6:.2f}",
            f"{count_macs(model, SIZE) / 1e9:.1f}",
            facts.get("cityscapes", ""),
            facts.get("camvid", ""),
            facts.get("source", ""),
        )
        rows.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(rows)


if __name__ == "__main__":
    _init_paths.run_main(main)
