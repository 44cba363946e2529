"""The list of published weight files: whole, and used where a file is named."""

import hashlib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
import manifest

from models import accepted_options, list_backbones
from models.registry import is_known
from models.weights.convert import DIALECTS

ENTRIES = manifest.read_manifest()
FIELDS = {
    "source", "url", "architecture", "dataset", "num_classes", "dialect", "metric", "protocol",
    "name_stated", "sha256", "sha256_prefix", "options",
}  # fmt: skip
DATASETS = {
    "cityscapes": 19, "camvid": 11, "ade20k": 150, "cocostuff164k": 171, "cocostuff10k": 171,
    "voc2012": 21, "imagenet": 1000,
}  # fmt: skip


@pytest.mark.parametrize("key", ENTRIES)
def test_every_entry_says_what_is_needed_to_load_the_file(key):
    entry = ENTRIES[key]
    assert set(entry) <= FIELDS and key.count("/") in (1, 2)
    assert {"source", "architecture", "dataset", "num_classes", "dialect", "protocol"} <= set(entry)
    assert entry["source"].startswith("https://")
    assert entry.get("url", "https://").startswith("https://")
    assert entry["num_classes"] == DATASETS[entry["dataset"]] or entry["dataset"] == "imagenet"
    assert 20 < entry.get("metric", 50) < 100
    prefix = str(entry.get("sha256_prefix", ""))
    assert all(c in "0123456789abcdef" for c in prefix) and prefix in key
    assert is_known(entry["architecture"]) or entry["architecture"] in list_backbones()
    assert entry["dialect"] in {d.name for table in DIALECTS.values() for d in table}
    assert set(entry.get("options", {})) <= set(accepted_options(entry["architecture"]))


def test_every_family_is_listed():
    families = {entry["architecture"].split("_")[0] for entry in ENTRIES.values()}
    published = "pidnet ddrnet rdrnet gcnet bisenetv1 bisenetv2 lrformer rtformer"
    assert set(published.split()) <= families


def test_absent_files_are_explained(refuses):
    name = "cityscapes/PIDNet_S_Cityscapes_val.pt"
    config = "configs/cityscapes/pidnet_s_cityscapes.yaml"
    words = ["not exist", f"download {Path(name).name} from https://", "into pretrained_models/"]
    path = f"pretrained_models/{name}"
    refuses(words, "tools/eval.py", "--cfg", config, "TEST.MODEL_FILE", path)
    refuses(words, "tools/train.py", "--cfg", config, "MODEL.PRETRAINED", path)
    assert "lists published files" in manifest.where_to_get("x/unheard_of.pt")


def test_digests_are_checked(tmp_path, monkeypatch):
    path = tmp_path / "cityscapes" / "net-12345678.pth"
    path.parent.mkdir()
    path.write_bytes(b"weights")
    digest = hashlib.sha256(b"weights").hexdigest()
    for stated, fits in ((digest, True), (digest[:8], True), ("12345678", False)):
        entry = {"source": "https://x", "sha256_prefix": stated, "metric": 70.1, "protocol": "val"}
        monkeypatch.setattr(
            manifest, "read_manifest", lambda entry=entry: {"cityscapes/net-12345678.pth": entry}
        )
        if fits:
            manifest.check_digest(path)
        else:
            with pytest.raises(ValueError, match=rf"has SHA-256 {digest}.*published with 12345678"):
                manifest.check_digest(path)
    assert manifest.published_score(path) == (
        "published for cityscapes/net-12345678.pth: 70.1 (val; https://x)"
    )
    assert manifest.published_score(tmp_path / "net-12345678.pth") == ""
