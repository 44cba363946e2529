"""Configuration: bases, overrides, coercions, and errors that say what would be accepted."""

import ast
import shlex
from pathlib import Path

import pytest
import torch
import yaml
from yacs.config import CfgNode

from configs import get_config
from configs.defaults import defaults
from configs.loader import changed_keys, leaf_names, run_folder
from datasets import EpochBatchSampler

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted(p for p in (ROOT / "configs").glob("*/*.yaml") if p.parent.name != "_base_")
OVERLAYS = [path for path in FILES if "_OVERLAY_: true" in path.read_text()]
CONFIGS = [path for path in FILES if path not in OVERLAYS]


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
    loader = trees[sources[-1]]  # checking a value is not using it
    loader.body = [n for n in loader.body if not getattr(n, "name", "").startswith("_check")]
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


def test_later_files_replace_what_earlier_ones_and_their_bases_set(leaf):
    leaf("TRAIN: {LR: 3.0, WD: 3.0}", "base.yaml")
    first = leaf("TRAIN: {LR: 1.0, WD: 1.0, POWER: 1.0}\nSEED: 1", "first.yaml")
    second = leaf("_BASE_: base.yaml\nTRAIN: {WD: 2.0}", "second.yaml")
    config = get_config([first, str(second)], ["SEED", "5"])
    assert (config.TRAIN.LR, config.TRAIN.WD, config.TRAIN.POWER) == (3.0, 2.0, 1.0)
    assert config.SEED == 5
    assert get_config([second, first]).TRAIN.WD == 1.0
    assert get_config([first]) == get_config(first)
    assert run_folder(config, [first, second]).name == "second"


def test_of_several_files_the_wrong_one_is_named(leaf, tmp_path):
    good = leaf("SEED: 1", "good.yaml")
    bad = {
        "a.yaml": ("TRAIN: {LRR: 1}", "unknown key TRAIN.LRR; did you mean TRAIN.LR"),
        "b.yaml": ("- 1", "the top level is a list, not KEY: value"),
        "c.yaml": ("TRAIN: {LR: -1}", "TRAIN.LR is -1.0; accepted: above 0"),
        "d.yaml": ("TRAIN: {LR: fast}", "TRAIN.LR is 'fast'"),
        "e.yaml": ("_BASE_: a.yaml", "TRAIN.LRR"),
    }
    for name, (text, sentence) in bad.items():
        path = leaf(text, name)
        for paths in ([good, path], [path, good]):
            with pytest.raises(ValueError) as caught:
                get_config(paths)
            origin = path if name != "e.yaml" else tmp_path / "a.yaml"
            assert sentence in str(caught.value) and f"{origin}: " in str(caught.value)
            assert "good.yaml" not in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(FileNotFoundError, match=r"gone\.yaml does not exist$"):
        get_config([good, tmp_path / "gone.yaml"])
    with pytest.raises(FileNotFoundError, match=r"goood\.yaml does not.*did you mean .*good\.yaml"):
        get_config([good, tmp_path / "goood.yaml"])
    with pytest.raises(ValueError, match=r"good\.yaml is given twice"):
        get_config([good, tmp_path / ".." / tmp_path.name / "good.yaml"])
    with pytest.raises(ValueError, match=r"is a folder"):
        get_config([good, tmp_path])


def command_of(path: Path) -> list[str]:
    """The words behind the interpreter in a file's opening comment."""
    lines = [line[4:] for line in path.read_text().splitlines() if line.startswith("#   ")]
    return shlex.split(" ".join(lines).replace("\\", " "))[1:]


@pytest.mark.parametrize("path", OVERLAYS, ids=lambda p: p.stem)
def test_every_overlay_says_how_it_is_used(path):
    script, *words = command_of(path)
    places = [index for index, word in enumerate(words) if word == "--cfg"]
    files, pairs = [words[index + 1] for index in places], words[places[-1] + 2 :]
    assert (ROOT / script).is_file() and ROOT / files[-1] == path and len(files) == 2
    below, config = get_config(ROOT / files[0]), get_config([ROOT / f for f in files], pairs)
    assert config.MODEL == below.MODEL and config.DATASET.DATASET == path.parent.name
    assert config.OUTPUT_DIR == f"output/{config.MODEL.NAME}"  # or networks would share a folder
    with pytest.raises(ValueError, match=rf"{path.name} goes on top of another: --cfg NET.* --cfg"):
        get_config(path)
    with pytest.raises(ValueError, match="goes on top of another"):
        get_config([path, ROOT / files[0]])


def test_an_overlay_can_be_a_base():
    trainval = get_config(ROOT / "configs/cityscapes/pidnet_s_cityscapes_trainval.yaml")
    files = [ROOT / f"configs/cityscapes/{n}.yaml" for n in ("pidnet_s_cityscapes", "trainval")]
    assert trainval == get_config(files) != get_config(files[0])


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
        (["TRAIN.LR=0.1"], ["TRAIN.LR=0.1 is no KEY", "write TRAIN.LR 0.1"]),
        (["SEED", "1", "TRAIN.LR=0.1", "WORKERS", "0"], ["write TRAIN.LR 0.1"]),
        (["TRAIN.LR=", "0.1"], ["write TRAIN.LR 0.1"]),
        (["TRAIN.LR", "=", "0.1"], ["write TRAIN.LR 0.1"]),
        (["TRAIN.LR", "=0.1"], ["write TRAIN.LR 0.1"]),
        (["TRAIN.LR="], ["write TRAIN.LR VALUE"]),
        (["train.lr=0.1"], ["write TRAIN.LR 0.1"]),
        (["TRAIN.IMAGE_SIZE=(64, 64)"], ["write TRAIN.IMAGE_SIZE '(64, 64)'"]),
        (["nothing=1"], ["write nothing 1"]),
        (["configs/a b.yaml"], ["is a file; write --cfg 'configs/a b.yaml'"]),
        (["train.lr", "0.1"], ["unknown key train.lr; did you mean TRAIN.LR?"]),
        (["Train.Lr", "0.1"], ["did you mean TRAIN.LR?"]),
        (["lr", "0.1"], ["did you mean TRAIN.LR?"]),
        (["LOSS.LR", "0.1"], ["unknown key LOSS.LR"]),
        (["seed", "1"], ["did you mean SEED?"]),
        (["trian.lr", "1"], ["did you mean TRAIN.LR?"]),
        (["batch_size_per_gpu", "1"], ["TRAIN.BATCH_SIZE_PER_GPU or TEST.BATCH_SIZE_PER_GPU?"]),
        (["dataset.num_classes", "11"], ["class count"]),
        (["TRAIN.LR", "{[1]: 2}"], ["TRAIN.LR", "accepted: float"]),
        (["TRAIN.LR", "(" * 3000], ["TRAIN.LR", "accepted: float"]),
        (["TRAIN.LR", "1" + "0" * 400], ["TRAIN.LR", "accepted: float"]),
        (["TEST.STRIDE", "(9,9)"], ["TEST.STRIDE is (9, 9)", "TEST.SLIDE, ()"]),
        (["TEST.SLIDE", "(9,9)", "TEST.STRIDE", "(9,10)"], ["TEST.STRIDE", "TEST.SLIDE, (9, 9)"]),
        (["TRAIN.END_LR", "0.02"], ["TRAIN.END_LR is 0.02", "0 to TRAIN.LR, 0.01"]),
        (["TRAIN.WARMUP_STEPS", "9", "TRAIN.WARMUP_LR", "1"], ["WARMUP_LR is 1.0", "0 to TRAIN"]),
        (["TRAIN.SCALE_STEP", "1.6"], ["TRAIN.SCALE_STEP is 1.6", "(0.5, 2.0)"]),
        (["TRAIN.MOMENTUM", "1"], ["TRAIN.MOMENTUM is 1.0", "below 1"]),
        (["TRAIN.PAD_VALUE", "256"], ["TRAIN.PAD_VALUE is 256.0", "0 to 255"]),
        (["MODEL.RESET", "(1,)"], ["MODEL.RESET is (1,)", "submodules"]),
        (["MODEL.RESET", "''"], ["MODEL.RESET is ('',)", "submodules"]),
        (["OUTPUT_DIR", ""], ["OUTPUT_DIR is ''", "a folder"]),
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
    assert message.startswith("command line: ")
    assert "\n" not in message and all(word in message for word in words), message


@pytest.mark.parametrize("seed", [0, 2**32, 2**63 - 1])
def test_every_accepted_seed_can_be_used(leaf, seed):
    seed = get_config(leaf(""), ["SEED", str(seed)]).SEED
    for rank in (0, 4095):
        torch.manual_seed(seed + rank)
    assert list(EpochBatchSampler(4, 2, seed=seed)) != list(EpochBatchSampler(4, 2, seed=1))


def numeric_keys() -> dict[str, int]:
    """Key -> how many numbers it takes: 0 for one that is no tuple."""
    keys = {}
    for key in leaf_names(defaults()):
        value: CfgNode | object = defaults()
        for part in key.split("."):
            value = value[part]
        if isinstance(value, tuple) and key != "MODEL.RESET":
            keys[key] = len(value) or (2 if key in ("TEST.SLIDE", "TEST.STRIDE") else 1)
        elif type(value) in (int, float):
            keys[key] = 0
    return keys


@pytest.mark.parametrize("key", numeric_keys())
def test_no_number_may_be_senseless(key, leaf):
    count = numeric_keys()[key]
    top, _, rest = key.rpartition(".")
    for bad in (".nan", ".inf", "-.inf", "-1", "-0.5", "true", "many", "null"):
        value = f"[{', '.join(['1'] * (count - 1) + [bad])}]" if count else bad
        path = leaf(f"{top}: {{{rest}: {value}}}" if top else f"{rest}: {value}")
        with pytest.raises(ValueError, match=rf"leaf\.yaml: {key} is .*; accepted: "):
            get_config(path)
    for bad in ("nan", "inf", "-inf", "1e999", "-1", "-0.5", "True", "many", ""):
        value = f"({', '.join(['1'] * (count - 1) + [bad])},)" if count else bad
        if value != "(,)":
            with pytest.raises(ValueError, match=rf"command line: {key} is .*; accepted: "):
                get_config(leaf(""), [key, value])


def test_numeric_keys_are_all_found():
    keys = numeric_keys()
    assert {"SEED", "TRAIN.LR", "TRAIN.CLIP_GRAD", "TEST.SCALES", "LOSS.AUX_WEIGHTS"} <= set(keys)
    assert keys["TRAIN.IMAGE_SIZE"] == 2 and keys["GPUS"] == 1 and len(keys) > 35


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
    with pytest.raises(ValueError, match=r"leaf\.yaml is not valid yaml: TRAIN stands twice.* 3$"):
        get_config(leaf("TRAIN: {LR: 1}\nSEED: 1\nTRAIN: {WD: 1}"))
    with pytest.raises(ValueError, match=r"not valid yaml: LR stands twice"):
        get_config(leaf("TRAIN: {LR: 1, LR: 2}"))
    with pytest.raises(ValueError, match="not valid yaml"):
        get_config(leaf("[" * 5000))
    for base in ("5", "[1]", "{a: b}"):
        with pytest.raises(ValueError, match=r"leaf\.yaml: _BASE_ is .*a file or a list"):
            get_config(leaf(f"_BASE_: {base}"))


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


def test_options_that_are_gone_have_changed_and_lists_are_tuples():
    cfg = ROOT / "configs/camvid/pidnet_s_camvid.yaml"
    first = get_config(cfg, ["MODEL.OPTIONS.sizes", "((1,2),(3,))", "MODEL.OPTIONS.light", "True"])
    earlier = first.dump().replace("light: true", "light: true\n    rates: [[1, 2], [3]]")
    same = ["MODEL.OPTIONS.sizes", "((1,2),(3,))", "MODEL.OPTIONS.rates", "[[1,2],[3]]"]
    assert changed_keys(get_config(cfg, same), earlier) == {"MODEL.OPTIONS.light": (True, None)}
