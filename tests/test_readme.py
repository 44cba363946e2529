"""The commands of the documentation parse and resolve; its generated part is up to date."""

import argparse
import importlib
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import yaml

from configs import get_config
from configs.arguments import parse_arguments
from datasets import get_meta
from datasets.synthetic import draw_scene
from models import build_model, resolve_name
from utils.checkpoint import save_checkpoint

ROOT = Path(__file__).resolve().parents[1]
PAGES = [
    ROOT / "README.md",
    ROOT / "data/README.md",
    ROOT / "pretrained_models/README.md",
    *sorted((ROOT / "docs").glob("*.md")),
]

WEIGHTS = "output/synthetic/rtlinearformer_slim_synthetic/best.pt"
OPTIONS = {"base_channels": 8, "attention_channels": 16, "head_channels": 16}


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
        parser = argparse.ArgumentParser()
        parser.add_argument("--probe", action="store_true")
        args = parse_arguments(parser, words=arguments)
        config = get_config([ROOT / path for path in args.cfg], args.opts)
        resolve_name(config.MODEL.NAME)
    elif script.name == "predict.py":
        args = importlib.import_module("predict").parse_args(arguments)
        assert (args.arch is None) == (args.classes is None)
        if args.arch:
            resolve_name(args.arch)
            get_meta(args.classes)
    elif script.parent.name == "speed":
        resolve_name(arguments[arguments.index("--a") + 1].replace("-", "_"))
        assert all(n.isdecimal() for n in arguments[arguments.index("--r") + 1 :][:2])
    for argument in arguments:
        if argument.startswith(("tests/", "docs/", "configs/")):
            assert (ROOT / argument).exists(), argument


@pytest.fixture
def photograph(tmp_path):
    """A folder with photograph.jpg, of a size that no stride divides, and a checkpoint for it."""
    scene, _ = draw_scene(0, height=333, width=517)
    cv2.imwrite(str(tmp_path / "photograph.jpg"), scene[..., ::-1])
    (tmp_path / "one.lst").write_text("photograph.jpg\n")
    meta = get_meta("synthetic")
    text = {"class_names": list(meta.class_names), "palette": [list(c) for c in meta.palette]}
    (tmp_path / "street.yaml").write_text(yaml.safe_dump(text))
    torch.manual_seed(0)
    model = build_model("rtlinearformer_slim", len(text["class_names"]), **OPTIONS)
    with torch.no_grad():  # norms that have something to fold
        for _ in range(8):
            model.forward_train(torch.randn(2, 3, 64, 64))
    content = {"architecture": model.architecture, "options": OPTIONS, "dataset": "street", **text}
    save_checkpoint(tmp_path / WEIGHTS, content | {"model": model.state_dict()})
    return tmp_path


@pytest.fixture
def package(monkeypatch):
    """`import rtseg`, as after an installation."""
    hubconf = runpy.run_path(str(ROOT / "hubconf.py"))
    hubconf["import_package"]()
    yield
    for name in [name for name in sys.modules if name.partition(".")[0] == "rtseg"]:
        del sys.modules[name]


def test_the_python_of_the_page_predicts_as_an_evaluation_does(
    photograph, package, monkeypatch, capsys
):
    codes = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    monkeypatch.chdir(photograph)
    exec(compile(codes[0], "README.md", "exec"), page := {})  # word for word
    classes, palette = page["classes"], np.array(get_meta("synthetic").palette)
    exec(compile(codes[1], "README.md", "exec"), second := {})
    assert second["chosen"].runtime == "eager"
    assert second["classes"].shape == (1, 360, 480)
    assert classes.shape == (333, 517) and len(np.unique(classes)) > 2
    picture = cv2.imread("labels.png")[..., ::-1]
    assert np.array_equal(picture, palette[classes])
    assert get_meta("synthetic").class_names[classes[0, 0]] in capsys.readouterr().out

    config = "configs/own/rtlinearformer_slim_own.yaml"
    options = [f"MODEL.OPTIONS.{key} {value}" for key, value in OPTIONS.items()]
    overrides = (
        "DATASET.DATASET street.yaml DATASET.ROOT . DATASET.TEST_SET one.lst WORKERS 0 "
        f"TEST.MODEL_FILE {WEIGHTS} OUTPUT_DIR scored {' '.join(options)}"
    )
    monkeypatch.setattr(sys, "argv", ["eval.py", "--cfg", str(ROOT / config), *overrides.split()])
    assert importlib.import_module("eval").main() == 0
    (file,) = Path("scored").glob("**/submission*/photograph.png")
    evaluated = cv2.imread(str(file), cv2.IMREAD_UNCHANGED)
    assert (evaluated == classes).mean() > 0.999  # folding rounds otherwise


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), target


def test_the_table_of_networks_is_up_to_date(run):
    run("tools/pages/make_tables.py", "--check")
