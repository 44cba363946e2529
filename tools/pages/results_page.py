"""Write docs/results.md and its pictures from the records in docs/results/:

    python tools/pages/results_page.py docs/results.yaml [--check]

--check writes nothing and says by its exit status whether the page is current.
"""

import argparse
import io
import json
import sys
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import _init_paths
import matplotlib
import yaml
from matplotlib.figure import Figure

from utils.records import atomic_file, atomic_write
from utils.results import (
    by_row,
    machine,
    mean_and_spread,
    network_options,
    read_results,
    trains_on_validation,
    wanted_runs,
)

DOCS = _init_paths.ROOT / "docs"
CURVES, LATENCY, PARTS = "results_curves.png", "results_latency.png", "results_parts.png"
HEAD = """# Results

<!-- Written by tools/pages/results_page.py; edit that program. -->

Everything in the tables was trained and scored by one command, which trains what has no record yet:

    python tools/results.py docs/results.yaml

mIoU in percent, one scale, no flip, whole images. The weights of every run are those that its
validation list has chosen, in half precision; the list named above a table was scored once, at the
end. Several seeds: mean and sample standard deviation. Minutes are those of training, without
scoring, on the machine named.
"""
NOT_CHOSEN = """Runs without a validation score have trained on the validation list, too, and keep
their last weights.
"""


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("table", type=Path)
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    table = yaml.safe_load(args.table.read_text(encoding="utf-8"))
    wanted_runs(table, str(args.table))  # refuses what is none
    order = list(table["runs"])
    records = [r for r in read_results(DOCS / "results") if r["name"] in order]
    records.sort(key=lambda r: order.index(r["name"]))
    path = DOCS / "results.md"
    main_list = [r for r in records if r["scored"] == table["score"]]
    others = [r for r in records if r["scored"] != table["score"]]
    titles = table.get("lists", {})
    text = "\n".join([HEAD, *sections(main_list, others, titles), table.get("notes", "")])
    text = text.rstrip() + "\n"
    if args.check:
        return int(not path.is_file() or path.read_text(encoding="utf-8") != text)
    atomic_write(path, text)
    for name, draw, shown in (
        (CURVES, draw_curves, main_list),
        (LATENCY, draw_latency, main_list),
        (PARTS, partial(draw_parts, titles=titles), others),
    ):
        if shown:
            with atomic_file(DOCS / "images" / name) as stream:
                stream.write(draw(shown))
    print(f"wrote {path} from {len(records)} records")
    return 0


def sections(
    main_list: list[dict[str, Any]], others: list[dict[str, Any]], titles: Mapping[str, str]
) -> list[str]:
    """The tables, those of every scored list apart, `titles` by list; the table's own list has the
    curves and the times."""
    text = [] if main_list or others else ["No run has been finished yet.\n"]
    if any(map(trains_on_validation, main_list + others)):
        text.append(NOT_CHOSEN)
    if main_list:
        text.append(f"![Validation mIoU over epochs](images/{CURVES})\n")
        text += tables(main_list, titles)
        text += accuracy_and_latency(main_list)
    if others:
        text.append(f"## On other lists\n\n![Test mIoU of every run](images/{PARTS})\n")
        text.append("Dots are runs, the line is their mean.\n")
        for _, runs in by_list(others):
            text += tables(runs, titles, level=3)
    return text


def by_list(records: list[dict[str, Any]]) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """(list, the records that are scored on it)."""
    for scored in dict.fromkeys(record["scored"] for record in records):
        yield scored, [record for record in records if record["scored"] == scored]


def tables(records: list[dict[str, Any]], titles: Mapping[str, str], level: int = 2) -> list[str]:
    """Heading and both tables of records that are scored on one list."""
    scored = records[0]["scored"]
    heading = f"{'#' * level} {titles.get(scored, scored)}\n\nScored on `{scored}`.\n"
    return [heading, overview(records), "Every class:\n", classes(records)]


def overview(records: list[dict[str, Any]]) -> str:
    """A line for every row of the table."""
    lines = [
        "| Run | Network | Seeds | Epochs | Steps | Minutes | Machine | Validation | Test |",
        "|---|---|--:|--:|--:|--:|---|--:|--:|",
    ]
    for _, runs in by_row(records):
        last, ends = runs[-1], [run["curve"][-1] for run in runs]
        cells = (
            last["title"],
            ", ".join([f"`{last['architecture']}`", *network_options(last)]),
            str(len(runs)),
            f"{mean(end['epoch'] for end in ends):.0f}",
            f"{mean(end['step'] for end in ends):.0f}",
            f"{mean(run['minutes'] for run in runs):.1f}",
            ", ".join(dict.fromkeys(machine(run["environment"]) for run in runs)),
            mean_and_spread([r["best"].get("miou") for r in runs if not trains_on_validation(r)]),
            mean_and_spread([run["test"]["mIoU"] for run in runs]),
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def classes(records: list[dict[str, Any]]) -> str:
    """IoU of every class on the list that all `records` are scored on."""
    names = list(records[0]["test"]["classes"])
    lines = [f"| Run | {' | '.join(names)} |", f"|---|{'--:|' * len(names)}"]
    for _, runs in by_row(records):
        cells = [
            mean_and_spread([run["test"]["classes"].get(name, {}).get("IoU") for run in runs])
            for name in names
        ]
        lines.append(f"| {runs[-1]['title']} | {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def accuracy_and_latency(records: list[dict[str, Any]]) -> list[str]:
    """The picture of accuracy over time per frame, where times of the networks are on record."""
    points = latency_points(records)
    if not points:
        return []
    text = (
        f"## Accuracy and time\n\n![Test mIoU over measured time](images/{LATENCY})\n\n"
        "Times are those of [speed.md](speed.md) at 1024x512 on a CPU, up to the class map, in "
        "float32 by the faster of PyTorch's forms.\n"
    )
    return [text]


def latency_points(records: list[dict[str, Any]]) -> dict[str, tuple[float, float]]:
    """Row -> (milliseconds, test mIoU in percent), of networks without options, as times are."""
    times: dict[str, float] = {}
    for file in sorted((DOCS / "records").glob("speed_cpu*.json")):
        lines = json.loads(file.read_text(encoding="utf-8"))["lines"]
        for key, line in lines.items():
            words = key.split()
            if words[1] in ("eager", "compiled") and words[-2:] == ["fp32", "classes"]:
                times[words[0]] = min(line["median_ms"], times.get(words[0], float("inf")))
    return {
        runs[-1]["title"]: (
            times[runs[-1]["architecture"]],
            100 * sum(run["test"]["mIoU"] for run in runs) / len(runs),
        )
        for _, runs in by_row(records)
        if runs[-1]["architecture"] in times and not network_options(runs[-1])
    }


def draw_curves(records: list[dict[str, Any]]) -> bytes:
    """Validation mIoU over epochs, a line for every run that has not trained on that list."""
    figure, axes = _axes()
    shown = [record for record in records if not trains_on_validation(record)]
    for place, (_, runs) in enumerate(by_row(shown)):
        for number, run in enumerate(runs):
            scored = [(e["epoch"], 100 * e["miou"]) for e in run["curve"] if e["miou"] is not None]
            label = run["title"] if number == 0 else None
            axes.plot(*zip(*scored, strict=True), ".-", color=f"C{place % 10}", label=label)
    axes.set_xlabel("epoch")
    axes.set_ylabel("validation mIoU, %")
    axes.legend(fontsize=8, frameon=False, loc="lower right")
    return _png(figure)


def draw_latency(records: list[dict[str, Any]]) -> bytes:
    """Test mIoU over milliseconds."""
    figure, axes = _axes()
    for title, (milliseconds, miou) in latency_points(records).items():
        axes.plot(milliseconds, miou, "o")
        axes.annotate(title, (milliseconds, miou), (4, 4), textcoords="offset points")
    axes.set_xlabel("class map of 512x1024, float32, CPU, ms")
    axes.set_xlim(left=0)
    axes.set_ylabel("test mIoU, %")
    return _png(figure)


def draw_parts(records: list[dict[str, Any]], titles: Mapping[str, str]) -> bytes:
    """Test mIoU of every run, a panel for every scored list, a line of dots for every row."""
    panels = [(scored, list(by_row(runs))) for scored, runs in by_list(records)]
    heights = [len(rows) for _, rows in panels]
    with matplotlib.rc_context({"font.size": 9}):
        figure = Figure(figsize=(7, 0.9 * len(panels) + 0.3 * sum(heights)), layout="constrained")
        grid = figure.subplots(len(panels), squeeze=False, height_ratios=heights)[:, 0]
    for axes, (scored, rows) in zip(grid, panels, strict=True):
        for place, (_, runs) in enumerate(rows):
            found = [100 * run["test"]["mIoU"] for run in runs]
            axes.plot(found, [place] * len(found), "o", color="C0", alpha=0.6)
            axes.plot([sum(found) / len(found)] * 2, [place - 0.3, place + 0.3], color="C0")
        axes.set_yticks(range(len(rows)), [runs[-1]["title"] for _, runs in rows])
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.set_xlabel("test mIoU, %")
        axes.set_title(titles.get(scored, scored), fontsize=9, loc="left")
        _calm(axes)
    return _png(figure)


def _axes():
    with matplotlib.rc_context({"font.size": 9}):
        figure = Figure(figsize=(7, 4), layout="constrained")
        axes = figure.subplots()
    _calm(axes)
    return figure, axes


def _calm(axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.3)


def _png(figure: Figure) -> bytes:
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=120)
    return stream.getvalue()


if __name__ == "__main__":
    _init_paths.run_main(main)
