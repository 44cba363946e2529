"""Who may import whom."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
WORLDS = ("configs", "datasets", "models", "utils")
SPEED = ROOT / "models" / "speed"  # entry points, which wire models and utils
FILES = sorted(
    p for world in WORLDS for p in (ROOT / world).rglob("*.py") if not p.is_relative_to(SPEED)
)


def imported(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield "." * node.level + (node.module or "")


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_worlds_do_not_import_one_another(path):
    # Not itself by its absolute name either: installed, a world lies inside of a package.
    assert not {name.split(".")[0] for name in imported(path)} & {*WORLDS, "tools"}


@pytest.mark.parametrize("path", [*FILES, *sorted((ROOT / "tools").rglob("*.py"))], ids=str)
def test_nothing_needs_torchvision(path):
    assert not any(name.split(".")[0] == "torchvision" for name in imported(path))


@pytest.mark.parametrize("path", sorted((ROOT / "tools").rglob("[a-z]*.py")), ids=lambda p: p.stem)
def test_entry_points_put_the_repository_first_on_the_path(path):
    source = path.read_text()
    if "__main__" in source:
        assert "_init_paths" in set(imported(path))
