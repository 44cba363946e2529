"""The commands of the documentation parse and resolve; its generated part is up to date."""

import argparse
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from configs import get_config
from configs.arguments import parse_arguments
from models import resolve_name

ROOT = Path(__file__).resolve().parents[1]
PAGES = [
    ROOT / "README.md",
    ROOT / "data/README.md",
    ROOT / "pretrained_models/README.md",
    *sorted((ROOT / "docs").glob("*.md")),
]


def commands():
    for page in PAGES:
        for block in re.findall(r"```bash\n(.*?)```", page.read_text(), re.DOTALL):
            for line in block.replace("\\\n", " ").splitlines():
                if line.strip():
                    yield pytest.param(line, id=f"{page.name}: {line[:60]}")


@pytest.mark.parametrize("line", commands())
def test_command_resolves(line):
    words = shlex.split(line, comments=True)
    if words[0] == "make":
        subprocess.run(["make", "-n", *words[1:]], cwd=ROOT, check=True, capture_output=True)
        return
    if words[:3] == ["python3", "-m", "venv"] or words[0] == "source":
        return
    assert words[0] in ("python", ".venv/bin/python"), line
    if words[1] == "-m":
        assert words[2] in ("pip", "pytest")
        return
    script, arguments = ROOT / words[1], words[2:]
    assert script.is_file(), script
    if "--cfg" in arguments:
        args = parse_arguments(argparse.ArgumentParser(), words=arguments)
        config = get_config([ROOT / path for path in args.cfg], args.opts)
        resolve_name(config.MODEL.NAME)
    elif script.parent.name == "speed":
        resolve_name(arguments[arguments.index("--a") + 1].replace("-", "_"))
        assert all(n.isdecimal() for n in arguments[arguments.index("--r") + 1 :][:2])
    for argument in arguments:
        if argument.startswith(("tests/", "docs/", "configs/")):
            assert (ROOT / argument).exists(), argument


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), target


def test_the_table_of_networks_is_up_to_date(run):
    run("tools/pages/make_tables.py", "--check")
