"""Check this project's networks, blocks and losses against the numbers of published code.

    python tools/verify_parity.py FOLDER [--strict] [--without NAME ...] [--json FILE]

FOLDER holds NAME.json files (see utils/parity.py) such as tests/golden. Every network is filled or
read from its real checkpoint file, through the same loader that training and evaluation use.
Exit status: 0 if all known fixtures agree, 1 if one does not (with --strict also if one is of an
architecture that is not known here), 2 if there is nothing to check.
"""

import argparse
import pickle
import re
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import _init_paths  # noqa: F401
import torch
from _init_paths import run_main
from parity.blocks import UnknownError, block_builder
from parity.losses import check_losses
from torch import Tensor, nn

from models import (
    accepted_options,
    build_backbone,
    build_model,
    fuse,
    list_backbones,
    resolve_name,
)
from models.lrformer_plus import QueryOutputs
from models.registry import check_extra
from models.weights import load_weights
from utils.errors import InputError
from utils.parity import (
    DAMAGE,
    Fixture,
    Row,
    difference,
    fill,
    inputs,
    read_fixture,
    stored_grid,
    table,
    tolerance,
)
from utils.records import environment, write_json


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--strict", action="store_true", help="unknown fixtures count as failures")
    parser.add_argument(
        "--without", nargs="+", default=[], metavar="NAME", help="fixtures that are not checked"
    )
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    args = parser.parse_args()
    paths = sorted(args.folder.glob("*.json"))
    unheard = sorted(set(args.without) - {path.stem for path in paths})
    if unheard:
        raise InputError(f"--without names {', '.join(unheard)}, which {args.folder} does not hold")
    paths = [path for path in paths if path.stem not in args.without]
    if not paths:
        raise InputError(f"{args.folder} holds no parity files (NAME.json)")
    rows = [row for path in paths for row in check(path)]
    counts = {v: sum(row.verdict == v for row in rows) for v in ("ok", "FAIL", "unknown")}
    failed = counts["FAIL"] > 0 or (args.strict and counts["unknown"] > 0)
    print(table(rows))
    if args.json:
        write_json(args.json, record(args.folder, paths, rows) | {"passed": not failed, **counts})
    print(
        f"{'FAILED' if failed else 'passed'}: {len(paths)} fixtures, {counts['ok']} comparisons "
        f"ok, {counts['FAIL']} failed, {counts['unknown']} unknown"
    )
    return int(failed)


def record(folder: Path, paths: list[Path], rows: list[Row]) -> dict[str, Any]:
    """What was compared with what, and where."""
    fixtures = {}
    for path in paths:
        try:
            fixture = read_fixture(path)
        except DAMAGE:
            continue
        official = fixture.data.get("official", {})
        fixtures[fixture.name] = {
            "architecture": fixture.data.get("build", {}).get("architecture"),
            "official": {key: official.get(key) for key in ("repo", "commit", "file")},
        }
    return {
        "command": f"python tools/verify_parity.py {folder}",
        "environment": environment(),
        "fixtures": fixtures,
        "rows": [vars(row) for row in rows],
    }


def check(path: Path) -> list[Row]:
    """All rows of one file. What goes wrong becomes a row."""
    rows: list[Row] = []
    name = path.stem
    try:
        fixture = read_fixture(path)
        name = fixture.name
        if fixture.kind == "losses":
            rows.extend(check_losses(fixture))
        else:
            rows.extend(check_model(fixture, builder(fixture)))
        if not rows:
            raise InputError("has no output that can be compared")
    except UnknownError as error:
        rows.append(Row(name, verdict="unknown", note=str(error)))
    except DAMAGE as error:
        rows.append(Row(name, verdict="FAIL", note=say(error)))
    return rows


def check_model(fixture: Fixture, build: Callable[[], nn.Module]) -> Iterator[Row]:
    """Networks, backbones and single blocks: load, run every case, compare."""
    files = checkpoint_files(fixture)
    with tempfile.TemporaryDirectory() as folder:
        for file in files or [None]:
            for case in fixture.cases():
                try:
                    path = file or write_checkpoint(fixture, case, Path(folder))
                    rows = list(compare(fixture, case, build(), path))
                except DAMAGE as error:
                    rows = [Row(fixture.name, case_name(case), verdict="FAIL", note=say(error))]
                yield from rows


def case_name(case: Any) -> str:
    return str(case.get("case", "")) if isinstance(case, dict) else repr(case)


def say(error: BaseException) -> str:
    """The sentence of an error; what Python itself raises on damaged data names its kind."""
    ours = isinstance(error, (ValueError, OSError))
    text = str(error) if ours else f"damaged: {type(error).__name__} {error}"
    return " ".join(text.split())[:300]


def builder(fixture: Fixture) -> Callable[[], nn.Module]:
    """How to build what the fixture is about, by its own entries alone."""
    builders = {"network": network_builder, "backbone": backbone_builder, "block": block_builder}
    if fixture.kind not in builders:
        raise UnknownError(f"kind {fixture.kind}")
    return builders[fixture.kind](fixture)


def network_builder(fixture: Fixture) -> Callable[[], nn.Module]:
    spec = fixture.entry("build")
    name, options = spec["architecture"], spec.get("options", {})
    try:
        resolve_name(name)
    except ValueError:
        raise UnknownError(f"architecture {name}") from None
    try:
        check_extra(name)
    except ValueError as error:
        raise UnknownError(str(error)) from None
    return lambda: build_model(name, spec["num_classes"], **our_options(name, options))


def backbone_builder(fixture: Fixture) -> Callable[[], nn.Module]:
    spec = fixture.entry("build")
    name, options = spec["architecture"], spec.get("options", {})
    if name not in list_backbones():
        raise UnknownError(f"backbone {name}")
    return lambda: build_backbone(name, **our_options(name, options))


def our_options(name: str, options: dict[str, Any]) -> dict[str, Any]:
    """Options under our names: some fixtures say `channels` for `base_channels`."""
    accepted = accepted_options(name)
    synonyms = {"channels": "base_channels"}
    return {
        option if option in accepted else synonyms.get(option, option): value
        for option, value in options.items()
    }


def checkpoint_files(fixture: Fixture) -> list[Path]:
    """Real checkpoint files that belong to the fixture."""
    names: list[str] = []
    for entry in (fixture.data.get("pdparams", {}), fixture.data.get("checkpoint", {})):
        names += [*entry.get("files", ()), *([entry["file"]] if "file" in entry else [])]
    return [fixture.path.parent / name for name in names]


def write_checkpoint(fixture: Fixture, case: dict[str, Any], folder: Path) -> Path:
    """The filled state dict as a file of its framework."""
    state = fill(fixture, case)
    if "paddle" in str(fixture.data.get("framework", "")):
        path = folder / "filled.pdparams"
        state["StructuredToParameterName@@"] = {
            key: f"parameter_{i}" for i, key in enumerate(state)
        }
        path.write_bytes(pickle.dumps(state, protocol=4))
    else:
        path = folder / "filled.pth"
        torch.save({key: torch.from_numpy(value) for key, value in state.items()}, path)
    return path


def load(model: nn.Module, path: Path, fixture: Fixture) -> str:
    """Load; heads of which the fixture has nothing at all stay fresh. Returns `loaded/stated`."""
    report = load_weights(model, path, inference=True)
    return f"{re.match(r'[0-9]+', report)[0]}/{len(fixture.tensors())}"


def compare(fixture: Fixture, case: dict[str, Any], model: nn.Module, path: Path) -> Iterator[Row]:
    """Load `path` into `model`, run the case, and compare every output of a role we know."""
    keys = load(model, path, fixture)
    outputs = run(model, fixture, case)
    label = case["case"] if path.stem == "filled" else f"{case['case']} ({path.name})"
    compared = 0
    for index, entry in enumerate(case["outputs"]):
        role = f"out{index}" if fixture.kind == "block" else entry["role"]
        known = r"main|aux:\d+|boundary|query_class|query_mask|feature:\d+|out\d+"
        if role not in outputs and not re.fullmatch(known, role):
            continue
        if role not in outputs:
            raise InputError(f"states output {role!r}, which the model does not give")
        reference = fixture.reference(entry["key"], entry["shape"])
        rel = difference(stored_grid(outputs[role].numpy(), entry), reference)
        compared += 1
        tol = tolerance(case, role, fixture.name, entry)
        yield Row.measured(fixture.name, label, role, keys, rel, tol)
    if not compared:
        raise InputError("states no output that can be compared")


def run(model: nn.Module, fixture: Fixture, case: dict[str, Any]) -> dict[str, Tensor]:
    """Role -> output in eval mode. Main logits are those of `forward`, the deployed graph."""
    if "eval" not in case.get("mode", "eval"):
        raise InputError(f"mode {case['mode']!r} cannot be compared; eval is")
    deployed = case.get("form") == "deployed"
    model = fuse(model) if deployed else model.eval()
    tensors = [torch.from_numpy(array) for array in inputs(fixture, case)]
    with torch.no_grad():
        if fixture.kind == "block":
            outputs = model(*tensors)
            outputs = outputs if isinstance(outputs, tuple) else (outputs,)
            return {f"out{i}": value for i, value in enumerate(outputs)}
        if fixture.kind == "backbone":
            return {f"feature:{i}": value for i, value in enumerate(model(*tensors))}
        result = {"main": model(*tensors)}
        if deployed:
            return result
        extra = model.forward_train(*tensors)
        if isinstance(extra, QueryOutputs):
            return {
                **result,
                "query_class": extra.classes[-1],
                "query_mask": extra.masks[-1],
            }
        result |= {f"aux:{i}": value for i, value in enumerate(extra.aux)}
        return result if extra.boundary is None else {**result, "boundary": extra.boundary}


if __name__ == "__main__":
    run_main(main)
