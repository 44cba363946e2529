"""pretrained_models/manifest.yaml: what is known of published weight files."""

import functools
from pathlib import Path
from typing import Any

import _init_paths
import yaml

from utils.errors import InputError
from utils.records import sha256

FOLDER = _init_paths.ROOT / "pretrained_models"


@functools.cache
def read_manifest() -> dict[str, dict[str, Any]]:
    """File below pretrained_models/ -> what its source says of it."""
    return yaml.safe_load((FOLDER / "manifest.yaml").read_text(encoding="utf-8"))


def entry_of(path: str | Path) -> tuple[str, dict[str, Any]] | None:
    """The manifest's key and entry of a file, told by its name and those of its folders."""
    parts = Path(path).absolute().parts
    keys = ("/".join(parts[-count:]) for count in (2, 3))
    return next(((key, read_manifest()[key]) for key in keys if key in read_manifest()), None)


def where_to_get(path: str | Path) -> str:
    """What to say after "PATH does not exist": where the file comes from and where it belongs."""
    known = entry_of(path)
    if known is None:
        named = [key for key in read_manifest() if key.rpartition("/")[2] == Path(path).name]
        if len(named) != 1:
            return "; pretrained_models/README.md lists published files"
        known = named[0], read_manifest()[named[0]]
    key, entry = known
    folder, _, name = key.rpartition("/")
    link = entry.get("url", entry["source"])
    return f"; download {name} from {link} into pretrained_models/{folder}/ (see {entry['source']})"


def check_digest(path: str | Path) -> None:
    """Raise ValueError if the manifest states another SHA-256 for this file."""
    known = entry_of(path)
    stated = known and str(known[1].get("sha256") or known[1].get("sha256_prefix") or "")
    if stated and not (found := sha256(path)).startswith(stated):
        raise InputError(
            f"{path} has SHA-256 {found}, {known[0]} is published with {stated}; the download is "
            "incomplete or another file"
        )


def published_score(path: str | Path) -> str:
    """One line about the score that the source states for a file, or ""."""
    known = entry_of(path)
    if known is None or "metric" not in known[1]:
        return ""
    entry = known[1]
    return f"published for {known[0]}: {entry['metric']} ({entry['protocol']}; {entry['source']})"
