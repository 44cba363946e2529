"""Turn a published checkpoint into one of this project.

    python tools/convert_weights.py PIDNet_S_Cityscapes_val.pt --dataset cityscapes \
        --out pretrained_models/cityscapes/pidnet_s.pt

The architecture is recognised from the tensors unless --a names it; constructor options that
differ from the architecture's own follow as NAME VALUE (cross_size 8). Beside the weights, OUT.yaml
is written: the entry for pretrained_models/manifest.yaml, with the SHA-256 of both files. Files
that hold no head (ImageNet weights, backbones) need no conversion.
"""

import argparse
import ast
from pathlib import Path

import _init_paths
import yaml
from _init_paths import run_main
from manifest import check_digest, entry_of, where_to_get

from datasets import DatasetMeta, EvalTransform, get_meta
from models import build_model, resolve_name
from models.registry import check_extra, is_known
from models.weights import (
    Checkpoint,
    absent_training_heads,
    class_count,
    load_weights,
    needs_extra,
    read_checkpoint,
    recognise,
    rename_for,
)
from utils.checkpoint import save_checkpoint
from utils.errors import InputError
from utils.records import atomic_write, sha256


def main() -> int:
    args = parse_args()
    check_output(args.file, args.out)
    options = parse_options(args.options)
    meta = get_meta(args.dataset) if args.dataset else None
    checkpoint = read_checkpoint(args.file)
    check_digest(args.file)
    check_installed(args.file, checkpoint)
    name = resolve_name(args.a) if args.a else recognise(checkpoint.tensors)
    if not is_known(name):
        raise InputError(
            f"{args.file} holds {name or 'no network that is known'}; name the architecture by --a "
            "and its options as NAME VALUE"
        )
    classes = class_count(name, checkpoint.tensors, options)
    if meta is not None and classes is not None and classes != meta.num_classes:
        raise InputError(
            f"{args.file} has {classes} classes, {meta.name} has {meta.num_classes}; name the "
            "dataset that it was trained on"
        )
    if classes is None:
        raise InputError(
            f"{args.file} holds no head of {name}; only whole networks are converted, files for "
            "initialisation load as they are by MODEL.PRETRAINED"
        )
    model = build_model(name, classes, **options)
    print(load_weights(model, checkpoint, inference=True))
    absent = tuple(f"{head}." for head in absent_training_heads(model, checkpoint.tensors))
    content = {
        "architecture": name,
        "options": options,
        "model": {k: v for k, v in model.state_dict().items() if not k.startswith(absent)},
        **names_of(meta),
    }
    save_checkpoint(args.out, content)
    entry = manifest_entry(args.file, args.out, model, checkpoint.tensors, meta, classes)
    text = yaml.safe_dump(entry, sort_keys=False, allow_unicode=True)
    atomic_write(args.out.with_name(f"{args.out.name}.yaml"), text)
    print(f"wrote {args.out} and {args.out}.yaml:\n{text}", end="")
    return 0


def check_output(source: Path, out: Path) -> None:
    """Refuse an output that would replace the source or lie outside a folder that exists."""
    if not source.is_file():
        raise FileNotFoundError(f"{source} does not exist{where_to_get(source)}")
    if out.exists():
        raise InputError(f"{out} exists; name another --out or remove it")
    if not out.parent.is_dir():
        raise FileNotFoundError(f"the folder {out.parent} of --out {out} does not exist")


def check_installed(source: Path, checkpoint: Checkpoint) -> None:
    """Refuse weights of a network that needs an extra which is not installed."""
    stated = checkpoint.facts.get("architecture")
    if is_known(stated):
        check_extra(stated)
    if needing := needs_extra(checkpoint.tensors):
        raise InputError(f"{source} holds {needing}")


def parse_options(words: list[str]) -> dict:
    """Constructor options from NAME VALUE pairs."""
    if len(words) % 2:
        raise InputError(f"{words[-1]!r} stands alone; options come in pairs NAME VALUE")
    options = {}
    for key, text in zip(words[::2], words[1::2], strict=True):
        try:
            options[key] = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            raise InputError(
                f"option {key} is {text!r}; a number, tuple or flag is needed"
            ) from None
    return options


def names_of(meta: DatasetMeta | None) -> dict:
    """What the checkpoint says of its classes."""
    if meta is None:
        return {}
    return {
        "dataset": meta.name,
        "class_names": list(meta.class_names),
        "palette": [list(color) for color in meta.palette],
        "input": EvalTransform().facts(),
    }


def manifest_entry(source: Path, out: Path, model, tensors, meta, classes: int) -> dict:
    """The converted file under its path below pretrained_models/, or its name."""
    known = entry_of(source)
    facts = dict(known[1]) if known else {}
    folder = _init_paths.ROOT / "pretrained_models"
    place = out.absolute()
    key = place.relative_to(folder).as_posix() if place.is_relative_to(folder) else out.name
    entry = {
        "source": facts.get("source", ""),
        "converted_from": {
            "file": source.name,
            "sha256": sha256(source),
            "dialect": rename_for(model, tensors).dialect.name,
        },
        "architecture": model.architecture,
        "dataset": meta.name if meta else facts.get("dataset", ""),
        "num_classes": classes,
        "dialect": "this project's",
        **{name: facts[name] for name in ("metric", "protocol") if name in facts},
        "sha256": sha256(out),
    }
    if model.options:
        entry["options"] = {
            k: list(v) if isinstance(v, tuple) else v for k, v in model.options.items()
        }
    return {key: entry}


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Turn a published checkpoint into one of this project."
    )
    parser.add_argument("file", type=Path, help="published checkpoint")
    parser.add_argument("--out", type=Path, required=True, help="file to write (.pt)")
    parser.add_argument("--a", metavar="NAME", help="architecture, if it is not recognised")
    parser.add_argument("--dataset", help="what it was trained on; its class names are stored")
    parser.add_argument("options", nargs="*", metavar="NAME VALUE", help="constructor options")
    return parser.parse_intermixed_args()


if __name__ == "__main__":
    run_main(main)
