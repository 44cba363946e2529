"""Who may import whom."""

import ast
import re
from pathlib import Path

import pytest
from packaging.requirements import Requirement

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


@pytest.mark.parametrize("path", sorted((ROOT / "tests").rglob("*.py")), ids=lambda p: p.stem)
def test_no_test_reads_a_clock_to_judge_speed(path):
    """Deadlines that end what hangs use time.monotonic; how fast something is, records say."""
    clocks = {"perf_counter", "process_time", "thread_time", "timeit", "getloadavg"}
    tree = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    used = {node.attr for node in tree if isinstance(node, ast.Attribute)}
    assert not used & clocks


def test_ruff_has_one_version():
    pinned = re.findall(r"ruff==([\d.]+)", (ROOT / "requirements.txt").read_text(encoding="utf-8"))
    hooks = re.findall(r"ruff==([\d.]+)", (ROOT / ".pre-commit-config.yaml").read_text())
    assert len(pinned) == 1 and hooks and set(hooks) == set(pinned)


def test_every_requirement_is_pinned():
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if line.strip() and not line.startswith("#")]
    assert pins and all(re.match(r"[\w.\[\]-]+==[\w.]+(; python_version .*)?$", p) for p in pins)
    for version in ("3.10", "3.11", "3.12", "3.13", "3.14"):  # one numpy for each
        chosen = [p for p in pins if p.startswith("numpy") and _applies(p, version)]
        assert len(chosen) == 1, version


def _applies(pin: str, version: str) -> bool:
    environment = {"python_version": version, "python_full_version": f"{version}.0"}
    marker = Requirement(pin).marker
    return marker is None or marker.evaluate(environment)
