"""Runs that end by epochs, steps or minutes."""

import pytest
import torch
from small_runs import CPU, WORLD, Log, Net, batches, new_run, new_step

from utils.distributed import World
from utils.engine import train_one_epoch
from utils.run_state import Plan, random_state
from utils.step import Step


def limited(monkeypatch, plan, seconds_per_step=0.0, count=4):
    """A run of `plan` over epochs of `count` batches: (steps, shares that the rate was asked for).

    The clock stands still but for `seconds_per_step`.
    """
    run, now, asked = new_run(Net(), steps=count), [100.0], []
    run.plan = plan
    monkeypatch.setattr("utils.engine.time.perf_counter", lambda: now[0])
    step = new_step(run)
    step.learning_rate = lambda share: asked.append(share) or 0.1

    def taken(run, group):
        Step.__call__(step, run, group)
        now[0] += seconds_per_step

    class Taken:
        world, collect, is_due = WORLD, step.collect, step.is_due
        stopping = False
        __call__ = staticmethod(taken)

    epochs = 0
    while not run.finished:
        assert train_one_epoch(run, Taken(), batches(count, 2), Log())
        now[0] += 50.0  # scoring, which is no training
        run.end_epoch()
        epochs += 1
    return run.progress, epochs, asked


def test_a_run_of_steps_ends_within_an_epoch(monkeypatch):
    progress, epochs, asked = limited(monkeypatch, Plan(3, 4, 1, 2, limit=10))
    assert (progress.step, epochs) == (10, 3)
    assert asked == pytest.approx([step / 10 for step in range(10)])


@pytest.mark.parametrize("first", [1, 3, 4, 6])
def test_a_higher_limit_of_steps_goes_on_within_the_epoch(first):
    """Taken are as many steps as asked for, by the epochs of a run that had asked at once."""

    def trained(run, limit):
        run.plan, epochs = Plan(-(-limit // 3), 3, 1, 2, limit=limit), []
        while not run.finished:
            left = batches(3, 2)[run.progress.step_in_epoch :]
            assert train_one_epoch(run, new_step(run), left, Log())
            epochs.append((run.progress.epoch + 1, run.progress.counted))
            run.end_epoch()
        return epochs

    straight, run = new_run(Net(), steps=3), new_run(Net(), steps=3)
    whole = trained(straight, 8)
    trained(run, first)
    assert run.progress.step == first and run.finished
    epochs = trained(run, 8)
    assert run.progress.step == 8 and epochs == whole[first // 3 :]
    assert not run.plan.position(run.progress) - 8 and run.progress.epoch == 2
    assert torch.equal(run.model.conv.weight, straight.model.conv.weight)


@pytest.mark.parametrize("then", [4, 12])
def test_a_limit_counts_steps_taken_whatever_an_epoch_was(then):
    """The batch has changed on the way, and with it the steps of an epoch."""
    run = new_run(Net(), steps=3)
    run.plan = Plan(3, 3, 1, 2, limit=8)
    assert train_one_epoch(run, new_step(run), batches(3, 2), Log())
    run.end_epoch()
    saved = run.state(random_state(WORLD))
    rest = new_run(Net(), steps=3)
    rest.plan = Plan(-(-8 // then), then, 1, 4, limit=8)
    rest.restore(saved, WORLD)
    assert rest.plan.share(rest.progress) == 3 / 8
    while not rest.finished:
        assert train_one_epoch(rest, new_step(rest), batches(then, 2), Log())
        rest.end_epoch()
    assert rest.progress.step == 8


def test_a_timed_run_follows_the_time_of_its_steps(monkeypatch):
    plan = Plan(1000, 4, 1, 2, seconds=30.0)
    progress, epochs, asked = limited(monkeypatch, plan, seconds_per_step=5.0)
    assert (progress.step, epochs, progress.trained) == (6, 2, 30.0)
    assert asked == pytest.approx([step / 6 for step in range(6)])


def test_a_run_of_epochs_is_as_it_was(monkeypatch):
    progress, epochs, asked = limited(monkeypatch, Plan(3, 4, 1, 2), seconds_per_step=1.0)
    assert (progress.step, epochs, progress.trained) == (12, 3, 12.0)
    assert asked == pytest.approx([step / 12 for step in range(12)])


def test_an_ended_run_takes_no_step_before_it_is_scored():
    run = new_run(Net(), steps=4)
    run.plan = Plan(1000, 4, 1, 2, seconds=30.0)
    run.progress.trained, run.progress.step_in_epoch = 31.0, 2  # killed while it was scored
    assert not run.finished and run.plan.ended(run.progress)
    assert train_one_epoch(run, new_step(run), batches(2, 2), Log())
    assert run.progress.step == 0 and run.progress.trained == pytest.approx(31.0, abs=5)
    run.end_epoch()
    assert run.finished


@pytest.mark.parametrize("limits", [{"limit": 10}, {"limit": 8}, {"seconds": 30.0}], ids=str)
@pytest.mark.parametrize("then", [(4, 4, 1), (2, 8, 1), (4, 2, 1), (4, 2, 2)], ids=str)
def test_a_run_killed_in_its_last_scoring_is_scored_whatever_has_changed(limits, then):
    """`then`: steps of an epoch, images of a step and processes afterwards."""
    steps, batch, processes = then
    run = new_run(Net(), steps=4)
    run.plan, run.progress.epoch, run.progress.trained = Plan(3, 4, 1, 2, **limits), 1, 10.0
    run.progress.step = 4
    while not run.plan.ended(run.progress):
        run.progress.advance()
        run.progress.trained += 5.0
        if not run.plan.ended(run.progress) and run.progress.step_in_epoch == 4:
            run.end_epoch()
    saved = run.state(random_state(WORLD))
    rest = new_run(Net(), steps=4)
    rest.plan = Plan(3, steps, 1, batch, **limits)
    rest.restore(saved, World(0, processes, CPU))
    assert rest.plan.ended(rest.progress) and not rest.finished
    taken = rest.progress.step
    assert train_one_epoch(rest, new_step(rest), batches(steps, 2), Log())
    assert rest.progress.step == taken and not rest.finished
    rest.end_epoch()
    assert rest.finished
    longer = new_run(Net(), steps=4)  # with steps left, the epoch is begun again
    longer.plan = Plan(3, steps, 1, batch, **{name: 2 * value for name, value in limits.items()})
    longer.restore(saved, World(0, processes, CPU))
    if (steps, batch, processes) != (4, 2, 1):
        assert longer.progress.step_in_epoch == 0 and not longer.finished
