"""The command line of tools that take a configuration."""

import argparse

import pytest

from configs import get_config
from configs.arguments import config_words, parse_arguments


def parse(*words: str, required: bool = True) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", type=int)
    return parse_arguments(parser, required=required, words=words)


def test_files_and_pairs_keep_their_order_wherever_they_stand():
    args = parse("SEED", "1", "--cfg", "a.yaml", "--seed", "3", "--cfg=b.yaml", "TRAIN.LR", "-1")
    assert (args.cfg, args.opts, args.seed) == (
        ["a.yaml", "b.yaml"],
        ["SEED", "1", "TRAIN.LR", "-1"],
        3,
    )
    assert config_words(args) == [
        "--cfg", "a.yaml", "--cfg", "b.yaml", "SEED", "1", "TRAIN.LR", "-1",
    ]  # fmt: skip
    assert parse("--cfg", "a.yaml").opts == [] and parse(required=False).cfg == []
    assert parse("--cfg", "a.yaml").cfg == ["a.yaml"]  # nothing is left of an earlier line


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--TRAIN.LR", "0.1"), "--TRAIN.LR: settings have no dashes; write TRAIN.LR 0.1"),
        (("-TRAIN.LR", "0.1"), "write TRAIN.LR 0.1"),
        (("--train.lr=0.1",), "write TRAIN.LR 0.1"),
        (("--TRAIN.IMAGE_SIZE", "(64, 64)"), "write TRAIN.IMAGE_SIZE '(64, 64)'"),
        (("SEED", "1", "--WORKERS", "2", "TRAIN.LR", "1"), "write WORKERS 2"),
        (("--lr", "0.1"), "write TRAIN.LR 0.1"),
        (("TRAIN.LR", "1", "--workers"), "write WORKERS VALUE"),
        (("--batch-size", "3"), "--batch-size is not known"),
        (("--bogus", "2", "TRAIN.LR", "1"), "--bogus is not known"),
        (("--seed", "three"), "argument --seed: invalid int value: 'three'"),
        (("TRAIN.LR", "-inf"), "-inf is not known"),
    ],
)
def test_other_spellings_are_refused_with_the_cure(words, sentence):
    for line in (("--cfg", "a.yaml", *words), (*words, "--cfg", "a.yaml")):
        with pytest.raises(ValueError) as caught:
            args = parse(*line)
            get_config([], args.opts)
        message = str(caught.value)
        assert message.startswith("command line: ") and sentence in message
        assert "\n" not in message


def test_a_configuration_must_be_named():
    with pytest.raises(ValueError, match=r"command line: .*required: --cfg"):
        parse("SEED", "1")
