"""Make compact golden files from full parity fixtures.

    python tools/parity/make_golden.py FOLDER tests/golden

Per case a few hundred values of the outputs, at seeded positions, are written into the JSON
itself; inputs are stated by their seeds. The files have the format that tools/verify_parity.py
reads, so that parity is tested in any clone. Left out are fixtures of architectures that this
project does not have, and those whose weights are in a file of their own.
"""

import argparse
import json
import re
import sys
import zlib
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import _init_paths  # noqa: F401
import numpy as np
from _init_paths import run_main
from parity.blocks import UnknownError
from verify_parity import builder

from utils.errors import InputError
from utils.parity import NORM_LEAVES, Fixture, decode, encode, read_fixture, sample_indices
from utils.records import atomic_write

SAMPLES_PER_CASE = 300
LARGEST_FILE, LARGEST_TOTAL = 100_000, 2_000_000  # bytes

# Entries that are needed to check; remarks and statistics stay in the full fixture.
KEPT = (
    "name", "kind", "build", "official", "params", "num_classes", "framework", "fill",
    "untouched", "settings", "results", "arrays", "state_dict",
)  # fmt: skip
KEPT_OF_CASE = (
    "case", "mode", "form", "seed", "input", "input_seeds", "inputs", "fill", "fp32_noise_rel",
)  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="full fixtures")
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    paths, total = sorted(args.folder.glob("*.json")), 0
    if not paths:
        raise InputError(f"{args.folder} holds no parity files (NAME.json)")
    for path in paths:
        fixture = read_fixture(path)
        try:
            text = json.dumps(compact(fixture), separators=(",", ":")) + "\n"
        except UnknownError as error:
            print(f"{path.name}: left out, {error}")
            continue
        total += len(text)
        if len(text) > LARGEST_FILE or total > LARGEST_TOTAL:
            raise InputError(f"{path.name}: {len(text)} bytes, {total} in all, are too many")
        atomic_write(args.out / path.name, text)
        print(f"{path.name}: {len(text)} bytes")
    print(f"{total} bytes in {args.out}")
    return 0


def compact(fixture: Fixture) -> dict[str, Any]:
    """The JSON of a golden file. Raises UnknownError where there is nothing to compare with."""
    result = {key: fixture.data[key] for key in KEPT if key in fixture.data}
    if fixture.kind == "losses":
        result["inline"] = inline_losses(fixture)
        return result
    builder(fixture)  # only to see that it is known
    if len(fixture.data.get("untouched", ())) == len(fixture.tensors()):
        raise UnknownError("weights that no seed makes")
    result["state_dict"] = grouped(fixture.tensors())
    result["cases"], result["inline"] = [], {}
    for case in fixture.cases():
        outputs = [
            {key: entry[key] for key in ("name", "role", "shape", "key") if key in entry}
            for entry in case["outputs"]
            if entry.get("role") != "other" or fixture.kind == "block"  # whose outputs all count
        ]
        kept = {key: case[key] for key in KEPT_OF_CASE if key in case}
        result["cases"].append({**kept, "outputs": outputs})
        for entry in outputs:
            array = fixture.array(entry["key"])
            result["inline"][entry["key"]] = sample(
                array, SAMPLES_PER_CASE // len(outputs), entry["key"]
            )
    return result


def grouped(tensors: list[tuple[str, list[int]]]) -> list[list[Any]]:
    """The state dict in fewer words: the five tensors of a BatchNorm are one entry."""
    result, at = [], 0
    while at < len(tensors):
        (key, shape), five = tensors[at], tensors[at : at + len(NORM_LEAVES)]
        path = key.removesuffix(".weight")
        if [k for k, _ in five] == [f"{path}.{leaf}" for leaf in NORM_LEAVES]:
            result.append([path, "norm", *shape])
            at += len(five)
        else:
            result.append([key, shape])
            at += 1
    return result


def sample(array: np.ndarray, count: int, key: str) -> dict[str, Any]:
    """Values at seeded positions, and the maximum of the whole."""
    seed = zlib.crc32(key.encode())
    values = array.ravel()[sample_indices(array.shape, count, seed)]
    return {
        "shape": list(array.shape),
        "seed": seed,
        "absmax": _short(np.abs(array).max()),
        "samples": [_short(value) for value in values],
    }


def _short(value: np.floating) -> float:
    return float(f"{value:.9g}")  # nine digits give a float32 back exactly


def inline_losses(fixture: Fixture) -> dict[str, Any]:
    """Inputs whole (packed or from their seeds), gradients as samples."""
    inline: dict[str, Any] = {}
    for key in fixture.entry("arrays"):
        array = fixture.array(key)
        if key.startswith("grad_"):
            inline[key] = sample(array, SAMPLES_PER_CASE // 3, key)
        elif key.startswith("logits_"):
            inline[key] = seeded_logits(fixture, key, array)
        elif key.rpartition("/")[2] in ("label", "edge") or array.dtype.kind == "i":
            inline[key] = encode(array)
    for key, spec in inline.items():
        if "samples" not in spec and not np.array_equal(decode(spec), fixture.array(key)):
            raise InputError(f"{fixture.name}: {key} cannot be made again from its description")
    return inline


def seeded_logits(fixture: Fixture, key: str, array: np.ndarray) -> dict[str, Any]:
    """Noise of the stated seed and scale; what is added to it is one class per pixel."""
    made, letter = fixture.entry("inputs")["made"], key.rpartition("_")[2]
    found = re.search(rf"(\d+) \({letter}, \*([\d.]+)(?:, \+([\d.]+))?", made)
    if found is None:
        raise InputError(f"{fixture.name}: `made` does not say how {key} is made")
    spec = {"shape": list(array.shape), "seed": int(found[1]), "scale": float(found[2])}
    if found[3]:
        classes = (array - decode(spec)).argmax(1).astype(np.uint8)
        spec |= {"bump": float(found[3]), "classes": encode(classes)}
    return spec


if __name__ == "__main__":
    run_main(main)
