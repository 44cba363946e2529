"""From a published file to one of ours, as a user would."""

import hashlib
from pathlib import Path

import pytest
import torch
import yaml

from models import build_model
from models.weights import load_weights, read_checkpoint, rename_for
from utils.parity import read_fixture

ROOT = Path(__file__).resolve().parents[2]
OPTIONS = {"base_channels": 4, "context_channels": 6, "head_channels": 8}
WORDS = [str(word) for pair in OPTIONS.items() for word in pair]


@pytest.fixture
def published(tmp_path):
    """A small DDRNet under the official names, without the training head, and that network."""
    keys = [k for k, _ in read_fixture(ROOT / "tests/golden/ddrnet_23.json").tensors()]
    model = build_model("ddrnet_23_slim", 11, **OPTIONS).eval()
    own = model.state_dict()
    sources = rename_for(model, keys).sources
    state = {theirs: own[ours] for ours, theirs in sources.items() if "aux_head" not in ours}
    path = tmp_path / "ddrnet.pth"
    torch.save({"state_dict": state}, path)
    return path, model


def test_conversion_keeps_the_network(published, run, tmp_path):
    source, model = published
    out = tmp_path / "ours.pt"
    arguments = ("--a", "ddrnet_23_slim", "--dataset", "camvid", "--out", out, *WORDS)
    result = run("tools/convert_weights.py", source, *arguments)
    assert (
        "none missing" in result.stdout and "its keys have official DDRNet names" in result.stdout
    )
    content = read_checkpoint(out)
    facts = content.facts
    assert (facts["architecture"], facts["dataset"]) == ("ddrnet_23_slim", "camvid")
    assert len(facts["class_names"]) == 11 and facts["options"] == OPTIONS
    assert not any(key.startswith("aux_head") for key in content.tensors)
    other = build_model("ddrnet_23_slim", 11, **OPTIONS).eval()
    load_weights(other, out, inference=True)
    x = torch.randn(1, 3, 64, 96)
    assert torch.equal(other(x), model(x))
    (key, entry), *_ = yaml.safe_load(Path(f"{out}.yaml").read_text()).items()
    assert key == "ours.pt" and entry["num_classes"] == 11 and entry["options"] == OPTIONS
    assert entry["sha256"] == hashlib.sha256(out.read_bytes()).hexdigest()
    assert entry["converted_from"]["sha256"] == hashlib.sha256(source.read_bytes()).hexdigest()
    assert entry["converted_from"]["dialect"] == "official DDRNet"


def test_architecture_is_recognised(run, tmp_path):
    path, out = tmp_path / "net.pth", tmp_path / "ours.pt"
    torch.save(build_model("rdrnet_s_simple", 19).state_dict(), path)
    run("tools/convert_weights.py", path, "--out", out)
    assert read_checkpoint(out).facts["architecture"] == "rdrnet_s_simple"


def test_bad_requests_are_refused(published, refuses, tmp_path):
    source, _ = published
    tool, out = "tools/convert_weights.py", tmp_path / "ours.pt"
    named = ("--a", "ddrnet_23_slim", "--out", out, *WORDS)
    refuses(["holds DDRNet weights of other sizes", "--a"], tool, source, "--out", out)
    refuses(["11 classes", "cityscapes has 19"], tool, source, *named, "--dataset", "cityscapes")
    refuses(["gone.pth does not exist"], tool, tmp_path / "gone.pth", "--out", out)
    refuses(["exists; name another"], tool, source, "--out", source)
    refuses(["nowhere", "does not exist"], tool, source, "--out", tmp_path / "nowhere/x.pt")
    refuses(["stands alone"], tool, source, *named, "exchanges")
    refuses(["no option depth"], tool, source, *named, "depth", "3")
    assert not out.exists() and not Path(f"{out}.yaml").exists()
