"""How long a run is by epochs, steps or minutes, and what follows how much of it lies behind."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from checks import idle_settings
from planning import build_plan, build_schedule, length
from training import Loaders, check_job

from configs import get_config
from datasets import EpochBatchSampler
from utils.run_state import Plan, Progress

ROOT = Path(__file__).resolve().parents[2]
DEMO = ROOT / "configs/synthetic/rtlinearformer_slim_synthetic.yaml"


def config(*words):
    return get_config(DEMO, ["TRAIN.BATCH_SIZE_PER_GPU", "4", "TRAIN.WARMUP_STEPS", "0", *words])


@pytest.mark.parametrize(
    ("words", "epochs", "steps", "said"),
    [
        (["TRAIN.END_EPOCH", "7"], 7, 70, "7 epochs of 10 steps"),
        (["TRAIN.STEPS", "25"], 3, 25, "25 steps in 3 epochs of 10 steps"),
        (["TRAIN.STEPS", "30"], 3, 30, "30 steps in 3 epochs of 10 steps"),
        (["TRAIN.STEPS", "25", "TRAIN.ACCUMULATE", "2"], 5, 25, "25 steps in 5 epochs of 5 steps"),
        (["TRAIN.MINUTES", "0.5"], None, None, "0.5 minutes of training, epochs of 10 steps"),
    ],
)
def test_what_decides_the_length(words, epochs, steps, said):
    plan = build_plan(config(*words), 43, 1)
    assert length(plan) == said
    assert epochs is None or (plan.epochs, plan.steps) == (epochs, steps)
    assert plan.seconds == (0 if epochs else 30)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (
            ["TRAIN.STEPS", "9", "TRAIN.MINUTES", "1"],
            r"TRAIN\.MINUTES is 1\.0; accepted: 0 where TR",
        ),
        (
            ["TRAIN.WARMUP_STEPS", "9", "TRAIN.MINUTES", "1"],
            r"TRAIN\.WARMUP_STEPS is 9; accepted: 0",
        ),
        (["TRAIN.WARMUP_STEPS", "9", "TRAIN.WARMUP", "0.1"], r"TRAIN\.WARMUP is 0\.1; accepted: 0"),
        (["TRAIN.WARMUP", "1"], r"TRAIN\.WARMUP is 1\.0; accepted: 0 or more, below 1"),
        (["TRAIN.CALM", "1.1"], r"TRAIN\.CALM is 1\.1; accepted: 0 to 1"),
        (["TRAIN.CUTMIX", "-0.1"], r"TRAIN\.CUTMIX is -0\.1; accepted: 0 to 1"),
        (["TRAIN.CAT_MAX_RATIO", "0"], r"TRAIN\.CAT_MAX_RATIO is 0\.0; accepted: above 0"),
        (["TRAIN.SCALE_LOG", "True", "TRAIN.SCALE_STEP", "0.1"], r"TRAIN\.SCALE_LOG is True; acc"),
        (["TRAIN.SCHEDULE", "step"], r"TRAIN\.SCHEDULE is 'step'; accepted: poly, cosine"),
        (["TRAIN.FLIP", "both"], r"TRAIN\.FLIP is 'both'; accepted: none, random, alternate"),
        (["TRAIN.COLOR", "1"], r"TRAIN\.COLOR is '1'; accepted: none, jitter, photometric"),
        (["DATASET.CLASS_WEIGHTS", "median"], r"CLASS_WEIGHTS is 'median'; accepted: none, publ"),
        (["LOSS.LABEL_SMOOTHING", "1"], r"LOSS\.LABEL_SMOOTHING is 1\.0; accepted: 0 or more"),
    ],
)
def test_what_cannot_be_is_refused(words, sentence):
    with pytest.raises(ValueError, match=f"command line: .*{sentence}"):
        config(*words)


@pytest.mark.parametrize(
    ("key", "on", "off"),
    [
        ("DATASET.CLASS_WEIGHTS", "published", "none"),
        ("TRAIN.FLIP", "random", "none"),
        ("TRAIN.COLOR", "jitter", "none"),
    ],
)
def test_true_and_false_keep_their_meaning(key, on, off, tmp_path):
    section, name = key.split(".")
    for value, meant in ((True, on), (False, off), (on, on)):
        leaf = tmp_path / "leaf.yaml"
        leaf.write_text(f"{section}: {{{name}: {str(value).lower()}}}")
        for found in (get_config(leaf), config(key, str(value)), config(key, str(value).lower())):
            assert found[section][name] == meant


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["TRAIN.CUTMIX", "0.5", "TRAIN.BATCH_SIZE_PER_GPU", "1"], "TRAIN.CUTMIX 0.5 does nothing"),
        (["TRAIN.CUTMIX", "0.5", "TRAIN.CALM", "1"], "TRAIN.CUTMIX 0.5 does nothing"),
        (["LOSS.AUX_NAME", "ohem", "LOSS.AUX_OVER_ALL_PIXELS", "True"], "AUX_OVER_ALL_PIXELS True"),
        (["TRAIN.CUTMIX", "0.5", "TRAIN.BATCH_SIZE_PER_GPU", "2"], ""),
        (["TRAIN.BATCH_SIZE_PER_GPU", "1"], ""),
        (["LOSS.AUX_OVER_ALL_PIXELS", "True"], ""),
        (["LOSS.AUX_NAME", "ohem"], ""),
    ],
    ids=str,
)
def test_settings_that_others_keep_from_acting_are_told(words, sentence):
    found = idle_settings(config(*words))
    assert len(found) == bool(sentence) and all(sentence in remark for remark in found)
    if "TRAIN.BATCH_SIZE_PER_GPU" not in words:  # which this network cannot be trained with
        assert found == [r for r in check_job(config(*words), Path()).remarks if "does noth" in r]


def test_warm_up_is_the_same_in_steps_and_as_a_share():
    plan = Plan(10, 10, 1, 4)
    by_steps = build_schedule(config("TRAIN.WARMUP_STEPS", "20"), plan)
    by_share = build_schedule(config("TRAIN.WARMUP", "0.2"), plan)
    rates = [by_steps(step / 100) for step in range(101)]
    assert rates == [by_share(step / 100) for step in range(101)]
    assert max(rates) == rates[20] == config().TRAIN.LR and rates[100] == config().TRAIN.END_LR


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("calm", [0.0, 0.25, 1.0])
def test_the_last_share_of_a_run_is_calm(calm, accumulate):
    plan = Plan(4, 6 // accumulate, accumulate, 4)
    sampler, seen = EpochBatchSampler(12, 2, seed=1), []
    loaders = Loaders(sampler, [], [], "")
    for epoch in range(4):
        loaders.start_at(SimpleNamespace(plan=plan, progress=Progress(epoch=epoch)), calm)
        seen += [batch[0].calm for batch in sampler]
        assert all(draw.calm == batch[0].calm for batch in sampler for draw in batch)
    first = 24 - round(24 * calm)
    assert seen == [False] * first + [True] * (24 - first)


def test_a_timed_run_is_calm_once_its_time_has_come():
    plan, progress = Plan(1000, 6, 1, 2, seconds=10.0), Progress()
    sampler, seen = EpochBatchSampler(12, 2, seed=1), []
    Loaders(sampler, [], [], "").start_at(SimpleNamespace(plan=plan, progress=progress), 0.5)
    for batch in sampler:
        seen.append(batch[0].calm)
        progress.trained += 2.0
    assert seen == [False, False, False, True, True, True]
