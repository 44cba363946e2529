"""Configuration: bases, overrides, coercions, and errors that say what would be accepted."""

import ast
from pathlib import Path

import pytest
import torch
import yaml

from configs import get_config
from configs.defaults import defaults
from configs.loader import changed_keys, leaf_names, run_folder
from datasets import EpochBatchSampler

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = sorted(p for p in (ROOT / "configs").glob("*/*.yaml") if p.parent.name != "_base_")


@pytest.fixture
def leaf(tmp_path):
    """A yaml file of the given content."""

    def write(text: str, name: str = "leaf.yaml") -> Path:
        path = tmp_path / name
        path.write_text(text)
        return path

    return write


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_every_config_loads_and_is_named_by_its_network(path):
    config = get_config(path)
    assert config.is_frozen()
    dataset = Path(config.DATASET.DATASET).stem
    assert path.parent.name == dataset
    family = config.MODEL.NAME.split("_")[0]
    assert path.stem.startswith(f"{family}_") and f"_{dataset}" in path.stem
    assert len(path.read_text().splitlines()) <= 30


def test_every_key_is_read_somewhere():
    sources = [*(ROOT / "tools").glob("*.py"), ROOT / "configs/loader.py"]
    trees = {p: ast.parse(p.read_text()) for p in sources}
    checks = next(n for n in trees[sources[-1]].body if getattr(n, "name", "") == "_check")
    trees[sources[-1]].body.remove(checks)  # checking a value is not using it
    attributes = {
        n.attr for tree in trees.values() for n in ast.walk(tree) if isinstance(n, ast.Attribute)
    }
    named = {"DATASET.TRAIN_SET"}  # read as config.DATASET[key], beside TEST_SET
    unread = [k for k in leaf_names(defaults()) if k.split(".")[-1] not in attributes]
    assert set(unread) <= named


def test_later_bases_and_overrides_win(leaf):
    leaf("TRAIN: {LR: 1.0, WD: 1.0}\nSEED: 1", "a.yaml")
    leaf("TRAIN: {LR: 2.0}", "b.yaml")
    path = leaf("_BASE_: [a.yaml, b.yaml]\nTRAIN: {END_EPOCH: 7}")
    config = get_config(path, ["SEED", "5"])
    assert (config.TRAIN.LR, config.TRAIN.WD, config.TRAIN.END_EPOCH) == (2.0, 1.0, 7)
    assert config.SEED == 5


@pytest.mark.parametrize(
    ("text", "expected"), [("0", (0,)), ("(0)", (0,)), ("(0,1)", (0, 1)), ("()", ())]
)
def test_published_spellings_of_gpus(leaf, text, expected):
    assert get_config(leaf(""), ["GPUS", text]).GPUS == expected
    assert get_config(leaf(f"GPUS: {text}")).GPUS == expected


def test_text_settings_stay_text_and_numbers_are_coerced(leaf):
    config = get_config(leaf("TRAIN: {LR: 1e-3, WD: 0}"), ["OUTPUT_DIR", "007"])
    assert config.OUTPUT_DIR == "007"
    assert get_config(leaf(""), ["TRAIN.RESUME", "true"]).TRAIN.RESUME is True
    assert (config.TRAIN.LR, config.TRAIN.WD) == (0.001, 0.0)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["TRAIN.BATCH_SIZE_GPU", "3"], ["command line", "mean TRAIN.BATCH_SIZE_PER_GPU"]),
        (["DATASET.NUM_CLASSES", "11"], ["class count", "class names"]),
        (["TRAIN.LR", "fast"], ["TRAIN.LR", "'fast'", "float"]),
        (["TRAIN.END_EPOCH", "1.5"], ["TRAIN.END_EPOCH", "1.5", "int"]),
        (["TRAIN.END_EPOCH", "0"], ["TRAIN.END_EPOCH is 0", "1 or more"]),
        (["GPUS", "(0,0)"], ["GPUS", "different"]),
        (["GPUS", "cpu"], ["GPUS", "cpu", "()"]),
        (["TRAIN.LR=0.1"], ["TRAIN.LR=0.1", "space"]),
        (["LOSS.NAME", "dice"], ["LOSS.NAME", "dice", "ohem"]),
        (["TRAIN"], ["TRAIN", "pairs"]),
        (["TRAIN", "3"], ["TRAIN is a section"]),
        (["TRAIN.IMAGE_SIZE", "512"], ["TRAIN.IMAGE_SIZE", "(512,)", "2 positive"]),
        (["TRAIN.SCALE_RANGE", "(2.0,0.5)"], ["TRAIN.SCALE_RANGE", "smaller"]),
        (["SEED", "-1"], ["SEED is -1", f"0 to {2**63 - 1}"]),
        (["SEED", str(2**63)], [f"SEED is {2**63}", f"0 to {2**63 - 1}"]),
        (["SEED", str(10**400)], ["SEED is 1000", f"0 to {2**63 - 1}"]),
        (["SEED", "1e3"], ["SEED is 1000.0", "int"]),
    ],
)
def test_bad_overrides_are_one_clear_sentence(leaf, overrides, words):
    with pytest.raises(ValueError) as caught:
        get_config(leaf(""), overrides)
    message = str(caught.value)
    assert "\n" not in message and all(word in message for word in words), message


@pytest.mark.parametrize("seed", [0, 2**32, 2**63 - 1])
def test_every_accepted_seed_can_be_used(leaf, seed):
    seed = get_config(leaf(""), ["SEED", str(seed)]).SEED
    for rank in (0, 4095):
        torch.manual_seed(seed + rank)
    assert list(EpochBatchSampler(4, 2, seed=seed)) != list(EpochBatchSampler(4, 2, seed=1))


def test_bad_files_name_themselves(leaf, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.yaml"):
        get_config(tmp_path / "nowhere.yaml")
    with pytest.raises(FileNotFoundError, match=r"gone\.yaml.*_BASE_ in .*leaf\.yaml"):
        get_config(leaf("_BASE_: gone.yaml"))
    with pytest.raises(ValueError, match=r"leaf\.yaml.*TRAIN\.LRR.*TRAIN\.LR"):
        get_config(leaf("TRAIN: {LRR: 1}"))
    with pytest.raises(ValueError, match="leads back"):
        get_config(leaf("_BASE_: leaf.yaml"))
    with pytest.raises(ValueError, match="not valid yaml"):
        get_config(leaf("TRAIN: [1"))
    with pytest.raises(ValueError, match="list, not KEY"):
        get_config(leaf("- 1"))


def test_yaml_cannot_build_objects(leaf, tmp_path):
    canary = tmp_path / "ran"
    with pytest.raises(ValueError, match="not valid yaml"):
        get_config(leaf(f"OUTPUT_DIR: !!python/object/apply:os.system ['touch {canary}']"))
    assert not canary.exists()


def test_dump_round_trips_and_differences_are_named(leaf):
    first = get_config(leaf("MODEL: {OPTIONS: {scales: [3, 5]}}"))
    again = get_config(leaf(first.dump(), "dump.yaml"))
    assert again == first
    assert yaml.safe_load(first.dump())["GPUS"] == []
    later = get_config(leaf("MODEL: {OPTIONS: {scales: [3]}}"), ["TRAIN.LR", "0.5"])
    assert changed_keys(later, first.dump()) == {
        "MODEL.OPTIONS.scales": ((3, 5), (3,)),
        "TRAIN.LR": (0.01, 0.5),
    }


def test_run_folder(leaf):
    config = get_config(leaf(""), ["OUTPUT_DIR", "out", "DATASET.DATASET", "camvid"])
    assert run_folder(config, "configs/camvid/x.yaml") == Path("out/camvid/x")
