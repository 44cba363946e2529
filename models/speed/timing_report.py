"""What the speed script prints of a record."""

from collections.abc import Sequence
from typing import Any

from utils.roofline import CARDS, PRECISIONS, expected_ms, floor_ms, trace

ENDS = {
    "logits": "logits",
    "resized": "+ resize",
    "classes": "+ argmax",
    "frame": "+ in and out",
}
NOISY = 1.5  # p90 over p10 of a line beyond which times say little


def label(name: str, form: str, precision: str, end: str) -> str:
    """The key of a line: "pidnet_s graph fp16 classes"."""
    return f"{name} {form} {precision} {end}"


def is_busy(record: dict[str, Any]) -> bool:
    """Whether other work on the machine makes the times say little."""
    return any(t["p90_ms"] > NOISY * t["p10_ms"] for t in record["lines"].values())


def report(record: dict[str, Any]) -> str:
    """Conditions, a table of medians, and how to read it."""
    facts, protocol = record["environment"], record["protocol"]
    tf32 = ""
    if record["device"] == "cuda":
        tf32 = f"; TF32 convolutions {facts['tf32_conv']}, products {facts['tf32_matmul']}"
    batch, _, height, width = record["input"]
    peak = record["peak_memory"]["bytes"]
    lines = [
        f"input {batch}x3x{height}x{width}, {record['num_classes']} classes{tf32}",
        f"on {facts['device']}, {facts['cpu_threads']} CPU threads, torch {facts['torch']}, "
        f"Python {facts['python']}, commit {facts['commit']}",
        f"peak memory {'unknown' if peak is None else f'{peak / 2**20:.0f} MiB'} "
        f"({record['peak_memory']['what']})",
        f"protocol: lines in turn, {protocol['rounds']} rounds, at least "
        f"{protocol['seconds_per_line']:g} s and {protocol['min_iterations_per_line']} iterations "
        f"per line after {protocol['warmup_seconds_per_line']:g} s of warm-up",
        "",
        *measured_table(record),
        "",
        *explanation(record),
    ]
    return "\n".join(lines)


def measured_table(record: dict[str, Any]) -> list[str]:
    """Median milliseconds: a row for each network, form and precision, a column for each end."""
    ends = [end for end in ENDS if any(key.endswith(f" {end}") for key in record["lines"])]
    given = [
        {end for end in ends if label(*row, end) in record["lines"]} for row in rows_of(record)
    ]
    common = max(set.intersection(*given) or {ends[0]}, key=ends.index)  # all rows can be compared
    rows = sorted_rows(record, common)
    head = [
        "network",
        "form",
        "precision",
        *(ENDS[end] for end in ends),
        f"FPS ({ENDS[common]})",
        "of peak",
    ]
    compared = [*ends] if record["time_ratios"] else []
    cells = [[*head, "published / this"] if compared else head]
    for row in rows:
        times = [record["lines"].get(label(*row, end)) for end in ends]
        last = record["lines"].get(label(*row, common)) or next(t for t in reversed(times) if t)
        cells.append(
            [
                *row,
                *("" if t is None else f"{t['median_ms']:.2f}" for t in times),
                f"{last['fps']:.1f}",
                share_of_peak(record, row, ends[0]),
                *([gain(record, row, compared)] if compared else []),
            ]
        )
    return align(cells, left=3)


def rows_of(record: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Network, form and precision of every row, as they were asked for."""
    return list(dict.fromkeys(tuple(key.split()[:3]) for key in record["lines"]))


def sorted_rows(record: dict[str, Any], end: str) -> list[tuple[str, str, str]]:
    """The rows, the fastest first; as asked for where the machine was too busy to tell."""
    rows = rows_of(record)
    if is_busy(record):
        return rows
    times = {row: record["lines"].get(label(*row, end)) for row in rows}
    return sorted(rows, key=lambda row: times[row]["median_ms"] if times[row] else float("inf"))


def share_of_peak(record: dict[str, Any], row: Sequence[str], end: str) -> str:
    """Operations per second over the most that large layers reach on the same machine."""
    times, peak = record["lines"].get(label(*row, end)), record["peak"].get(row[2])
    if not times or not peak:
        return ""
    operations = 2 * record["networks"][row[0]]["macs_per_image"] * record["input"][0]
    return f"{operations / (times['median_ms'] / 1e3) / peak['operations_per_second']:.0%}"


def gain(record: dict[str, Any], row: tuple[str, str, str], ends: list[str]) -> str:
    """Time of the published form over that of this row, at the last end that both have."""
    for end in reversed(ends):
        reference = label(row[0], "published", "fp32", end)
        if ratio := record["time_ratios"].get(f"{label(*row, end)} / {reference}"):
            return f"{1 / ratio['median']:.2f}"
    return ""


def explanation(record: dict[str, Any]) -> list[str]:
    """What the words of the table mean, as far as they occur, and what was remarked on the way."""
    rows = {tuple(key.split()[:3]) for key in record["lines"]}
    lines = []
    for name, network in record["networks"].items():
        text = f"{name}: {network['parameters'] / 1e6:.2f} M parameters, "
        text += f"{network['macs_per_image'] / 1e9:.2f} G MACs, logits at 1/{network['stride']}"
        if network["floor_ms"]:
            floors = ", ".join(f"{k} {v:.3f}" for k, v in network["floor_ms"].items())
            text += f"; no less than {floors} ms on this card"
        lines.append(text)
    if any(form == "published" for _, form, _ in rows):
        lines.append("published: as trained, contiguous, eager, as published scripts time it")
    peaks = (
        f"{k} {v['operations_per_second'] / 1e12:.2f} ({v['of']})"
        for k, v in record["peak"].items()
    )
    lines.append(
        "of peak: of the operations per second of a large product or convolution here, 10^12: "
        f"{', '.join(peaks)}"
    )
    lines += [f"{what}: {told}" for what, told in record["deployments"].items()]
    if is_busy(record):
        lines.append(
            f"the machine was busy: p90 is above {NOISY} x p10; nothing is ranked, and these times "
            "are not to be quoted"
        )
    return lines


def estimate_table(models: dict[str, Any], size: tuple[int, int], batch: int, cards: list[str],
                   precisions: list[str]) -> list[str]:  # fmt: skip
    """Least possible and expected milliseconds up to the logits on cards that are not at hand."""
    cells = [["network", "G MACs", "card", *(f"{p} least, expected" for p in precisions)]]
    for name, model in models.items():
        traces = {
            dtype: trace(model, size, batch, dtype)
            for dtype in {PRECISIONS[precision] for precision in precisions}
        }
        for card in map(CARDS.get, cards):
            numbers = []
            for precision in precisions:
                layers = traces[PRECISIONS[precision]]
                floor, expected = (f(layers, card, precision) for f in (floor_ms, expected_ms))
                numbers.append(f"{floor:.2f}, {expected:.2f}")
            macs = sum(layer.macs for layer in next(iter(traces.values()))) / batch
            cells.append([name, f"{macs / 1e9:.1f}", card.name, *numbers])
    return align(cells, left=1)


def align(cells: Sequence[Sequence[str]], left: int) -> list[str]:
    """Lines of a table; the first `left` columns start, the others end in one place."""
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return [
        "  ".join(
            f"{cell:<{w}}" if index < left else f"{cell:>{w}}"
            for index, (cell, w) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in cells
    ]
