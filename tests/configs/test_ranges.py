"""Values of a configuration: integers of 32 bits, options of a network, paths with ~."""

from pathlib import Path

import pytest
import yaml

from configs import get_config
from configs.defaults import defaults
from configs.loader import leaf_names
from configs.ranges import PATHS


@pytest.fixture
def leaf(tmp_path):
    """A yaml file of the given content."""

    def write(text: str) -> Path:
        path = tmp_path / "leaf.yaml"
        path.write_text(text)
        return path

    return write


def value_of(node, key):
    for part in key.split("."):
        node = node[part]
    return node


def integer_keys() -> dict[str, int]:
    """Key -> how many integers it takes: 0 for one that is no tuple."""
    keys = {"GPUS": 1, "LOSS.AUX_WEIGHTS": 1, "TEST.SCALES": 1, "TEST.SLIDE": 2, "TEST.STRIDE": 2}
    for key in leaf_names(defaults()):
        value = value_of(defaults(), key)
        if type(value) is int and key != "SEED":
            keys[key] = 0
        elif isinstance(value, tuple) and value and type(value[0]) is int:
            keys[key] = len(value)
    return keys


@pytest.mark.parametrize("key", integer_keys())
def test_no_integer_exceeds_32_bits(key, leaf):
    count = integer_keys()[key]
    for bad in (2**31, 10**14, 10**23, 10**400):
        value = f"({', '.join(['1'] * (count - 1) + [str(bad)])},)" if count else str(bad)
        with pytest.raises(ValueError, match=rf"^command line: {key} is .*; accepted: ") as caught:
            get_config(leaf(""), [key, value])
        assert "below 2**31" in str(caught.value) or key in ("GPUS", "LOSS.AUX_WEIGHTS")


def test_integer_keys_are_all_found():
    assert {"TRAIN.END_EPOCH", "TEST.BATCH_SIZE_PER_GPU", "WORKERS", "TRAIN.IMAGE_SIZE"} <= set(
        integer_keys()
    )


@pytest.mark.parametrize(
    "name", ["1", "1.5", "null", "true", "a.b", "'a b'", "''", "[1]", "2020-1-1"]
)
def test_options_have_names(name, leaf):
    with pytest.raises(ValueError, match=r"leaf\.yaml") as caught:
        get_config(leaf(f"MODEL: {{OPTIONS: {{{name}: 2}}}}"))
    assert "\n" not in str(caught.value)
    assert name == "[1]" or "MODEL.OPTIONS has the key" in str(caught.value)


@pytest.mark.parametrize("value", ["{b: 1}", "2001-01-01", "!!set {1}", "2147483648", "[1, [{}]]"])
def test_options_hold_what_a_dump_can_hold(value, leaf):
    with pytest.raises(ValueError, match=r"leaf\.yaml: MODEL\.OPTIONS\.a is .*; accepted: text, a"):
        get_config(leaf(f"MODEL: {{OPTIONS: {{a: {value}}}}}"))
    for text in ("{1, 2}", "b''", "1j", str(10**30)):
        with pytest.raises(ValueError, match=r"command line: MODEL\.OPTIONS\.a is .*; accepted: "):
            get_config(leaf(""), ["MODEL.OPTIONS.a", text])


def test_options_that_can_be_dumped_are_taken(leaf):
    options = {"a": (4, 3, (5, 4)), "b": "conv", "c": 1.5, "d": True, "e": None}
    words = [
        word for key, value in options.items() for word in (f"MODEL.OPTIONS.{key}", f"{value}")
    ]
    config = get_config(leaf(""), words)
    assert dict(config.MODEL.OPTIONS) == options
    assert yaml.safe_load(config.dump())["MODEL"]["OPTIONS"]["a"] == [4, 3, [5, 4]]
    nested = get_config(leaf("MODEL: {OPTIONS: {a: [4, 3, [5, 4]]}}"))
    assert nested.MODEL.OPTIONS.a == (4, 3, [5, 4])


@pytest.mark.parametrize("key", PATHS)
def test_a_tilde_is_the_home_folder(key, leaf, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("USERPROFILE", "/home/me")
    section, _, name = key.rpartition(".")
    for given, expected in (("~", "/home/me"), ("~/a/b.yaml", "/home/me/a/b.yaml"), ("a~", "a~")):
        text = f"{section}: {{{name}: '{given}'}}" if section else f"{name}: '{given}'"
        for config in (get_config(leaf(""), [key, given]), get_config(leaf(text))):
            assert value_of(config, key) == expected
    with pytest.raises(ValueError, match=rf"command line: {key} is '~nobody-here/a'; accepted: "):
        get_config(leaf(""), [key, "~nobody-here/a"])


def test_every_path_setting_is_known():
    found = {k for k in leaf_names(defaults()) if k.endswith(("_DIR", "ROOT", "_FILE", "_SET"))}
    assert found | {"DATASET.DATASET", "MODEL.PRETRAINED"} == set(PATHS)
