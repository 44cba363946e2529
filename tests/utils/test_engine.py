"""One epoch: losses that are not finite, gradient accumulation, what a resumed epoch reports."""

import operator
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

from models.weights import read_checkpoint
from utils.averaging import AveragedWeights
from utils.checkpoint import read_resumable, save_checkpoint
from utils.distributed import World
from utils.engine import evaluate, train_one_epoch
from utils.metrics import ConfusionMatrix
from utils.optim import build_optimizer
from utils.run_state import MAX_BAD_STEPS, Plan, Precision, Run, random_state
from utils.step import Step, TrainForm

CPU = torch.device("cpu")
WORLD = World(0, 1, CPU)


class Outputs(NamedTuple):
    logits: Tensor


class Net(nn.Module):
    """A 1x1 convolution, without batch statistics unless `norm`, so that batches can be split."""

    size_divisor = 1

    def __init__(self, norm=False):
        super().__init__()
        torch.manual_seed(0)
        self.norm = nn.BatchNorm2d(3) if norm else nn.Identity()
        self.conv = nn.Conv2d(3, 2, 1)

    def forward(self, x):
        return self.conv(self.norm(x))

    def forward_train(self, x):
        return Outputs(self(x))

    def upsample(self, logits, size):
        return logits

    def check_size(self, height, width):
        pass


def criterion(outputs, label, boundary):
    loss = nn.functional.cross_entropy(outputs.logits, label.long())
    return loss, {"main": loss.detach()}


def batches(count, size, poison=()):
    torch.manual_seed(1)
    images = torch.randn(count * size, 3, 4, 4)
    labels = torch.randint(0, 2, (count * size, 4, 4), dtype=torch.uint8)
    for index in poison:
        images[index] = float("nan")
    return [
        {
            "image": images[i * size : (i + 1) * size],
            "label": labels[i * size : (i + 1) * size],
            "name": [f"image{j}" for j in range(i * size, (i + 1) * size)],
        }
        for i in range(count)
    ]


class Log:
    def __init__(self):
        self.lines, self.steps = [], []

    def info(self, line):
        self.lines.append(line)

    def scalars(self, values, step):
        self.steps.append(step)

    def every_minute(self, line):
        assert "images/s" in line()


class Stop:
    """What a signal sets."""

    asked = False

    def __call__(self):
        return self.asked


@pytest.fixture
def stop():
    return Stop()


def new_run(model, *, steps, accumulate=1, size=2, ema=0.0, momentum=0.0, save_every=0):
    return Run(
        model,
        build_optimizer(model, "sgd", lr=0.1, weight_decay=0.0, momentum=momentum),
        Precision.choose("fp32", CPU).scaler(),
        Plan(9, steps, accumulate, size, save_every),
        averaged=AveragedWeights(model, ema) if ema else None,
    )


def new_step(run, stop=lambda: False, **more):
    return Step(
        TrainForm(run.model),
        criterion,
        world=WORLD,
        precision=Precision.choose("fp32", CPU),
        learning_rate=lambda step: 0.1,
        stop=stop,
        **more,
    )


def train(model, loader, stop=lambda: False, *, run=None, steps=None, accumulate=1, **more):
    """One epoch; the progress after it."""
    run = run or new_run(model, steps=steps or len(loader) // accumulate, accumulate=accumulate)
    log = Log()
    finished = train_one_epoch(run, new_step(run, stop, **more), loader, log)
    return finished, run.progress, log


@pytest.mark.parametrize("log_every", [1, 3, 100])
def test_a_step_without_a_finite_loss_is_skipped_counted_and_named(log_every):
    model = Net()
    finished, progress, log = train(model, batches(4, 2, poison=[3]), log_every=log_every)
    assert finished and progress.skipped == 1 and progress.step_in_epoch == 4
    assert log.lines == ["step 2 skipped: not finite on image2, image3"]
    assert log.steps == [1, 2, 3, 4]
    assert all(p.isfinite().all() for p in model.parameters())
    assert 0 < progress.means()["loss"] < 10


def test_images_that_others_replaced_are_counted_and_named():
    loader = batches(3, 2)
    loader[1]["skipped"] = [[], ["image7 is empty (0 bytes)", "image9 is gone"]]
    loader[2]["skipped"] = [[], []]
    _, progress, log = train(Net(), loader)
    assert progress.unreadable == 2 and progress.skipped == 0
    assert log.lines == [
        "step 2: image7 is empty (0 bytes); another image took its place",
        "step 2: image9 is gone; another image took its place",
    ]
    progress.end_epoch()
    assert progress.unreadable == 0


@pytest.mark.parametrize("name", ["sgd", "adamw"])
@pytest.mark.parametrize("poisoned", [[2, 3], [0, 1], [2, 3, 4, 5]])
def test_a_skipped_step_leaves_no_trace_anywhere(name, poisoned):
    """Weights, optimiser, averaged weights and norms are those of a run without that step."""

    def trained(loader):
        model = Net(norm=True)
        run = new_run(model, steps=len(loader), ema=0.9)
        more = {"momentum": 0.9} if name == "sgd" else {}
        run.optimizer = build_optimizer(model, name, lr=0.1, weight_decay=0.01, **more)
        run.averaged.set_step = lambda step: run.averaged._rate.fill_(0.25)
        assert train(model, loader, run=run)[0]
        return run

    loader = batches(4, 2, poison=poisoned)
    run = trained(loader)
    clean = trained([b for b in loader if b["image"].isfinite().all()])
    for kind in ("model", "averaged.model"):
        pairs = [operator.attrgetter(kind)(r).state_dict() for r in (run, clean)]
        for key, value in pairs[1].items():
            if "num_batches" not in key:
                assert torch.equal(pairs[0][key], value), (kind, key)
    states = [r.optimizer.state_dict()["state"] for r in (run, clean)]
    for index, values in states[1].items():
        for key, value in values.items():
            assert torch.equal(states[0][index][key], value), (index, key)
    assert run.model.eval()(torch.zeros(1, 3, 4, 4)).isfinite().all()


def test_a_finite_loss_with_a_broken_gradient_is_skipped():
    model = Net()
    before = model.conv.weight.detach().clone()
    model.conv.weight.register_hook(lambda gradient: gradient * float("nan"))
    _, progress, _ = train(model, batches(2, 2), clip_grad=1.0)
    assert progress.skipped == 2 and torch.equal(model.conv.weight, before)
    assert progress.means() == {"loss": None}


def test_a_run_that_never_recovers_ends_however_short_its_epochs():
    run, epochs = new_run(Net(), steps=3, size=1), 0
    with pytest.raises(FloatingPointError, match=r"20 steps in a row.*TRAIN\.LR"):
        while epochs < MAX_BAD_STEPS:
            train(run.model, batches(3, 1, poison=range(3)), run=run)
            run.progress.end_epoch()
            epochs += 1
    assert epochs == MAX_BAD_STEPS // 3


def test_accumulated_batches_are_one_larger_batch():
    whole, split = Net(), Net()
    train(whole, batches(2, 4))
    train(split, batches(4, 2), accumulate=2)
    for a, b in zip(whole.parameters(), split.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_gradients_are_clipped():
    free, clipped = Net(), Net()
    before = free.conv.weight.detach().clone()
    train(free, batches(1, 4))
    train(clipped, batches(1, 4), clip_grad=0.01)
    moved = [(m.conv.weight - before).norm().item() for m in (free, clipped)]
    assert moved[1] < moved[0] and moved[1] <= 0.1 * 0.01 * 1.001


def test_a_step_is_that_of_a_plain_loop():
    model, plain = Net(norm=True), Net(norm=True)
    loader = batches(5, 4)
    run = new_run(model, steps=5, momentum=0.9)
    train(model, loader, run=run)
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.1, momentum=0.9)
    for batch in loader:
        optimizer.zero_grad()
        criterion(plain.forward_train(batch["image"]), batch["label"], None)[0].backward()
        optimizer.step()
    for (name, a), b in zip(model.state_dict().items(), plain.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, msg=name)


def test_averaged_weights_start_low_and_follow():
    run, expected = new_run(Net(), steps=6, ema=0.6), None
    weights = []
    step = new_step(run)
    for batch in batches(6, 2):
        step(run, [batch])
        weights.append(run.model.conv.weight.detach().clone())
    expected = Net().conv.weight.detach().clone()
    for index, weight in enumerate(weights):
        decay = min(0.6, (1 + index) / (10 + index))
        expected = decay * expected + (1 - decay) * weight
    torch.testing.assert_close(run.averaged.model.conv.weight, expected)
    assert list(run.networks) == ["averaged", "trained"]
    assert run.weights()["model"]["conv.weight"] is not run.model.conv.weight


def test_a_stop_ends_after_the_step_and_the_rest_completes_the_means(stop):
    model, loader = Net(), batches(4, 2)
    _, reference, _ = train(Net(), loader)
    run = new_run(model, steps=4)

    def first_two():
        yield loader[0]
        stop.asked = True
        yield loader[1]

    finished, progress, _ = train(model, first_two(), stop, run=run)
    assert not finished and progress.step_in_epoch == progress.counted == 2
    stop.asked = False
    finished, progress, log = train(model, loader[2:], stop, run=run)
    assert finished and log.steps == [3, 4]
    assert progress.means() == pytest.approx(reference.means())
    assert progress.means()["grad_norm"] > 0


def test_checkpoints_are_asked_for_when_all_steps_are_counted():
    run, saved = new_run(Net(), steps=5, save_every=2), []

    def save():
        saved.append((run.progress.step, run.progress.counted))

    train_one_epoch(run, new_step(run, log_every=4), batches(5, 2), Log(), save)
    assert saved == [(2, 2), (4, 4)] and run.progress.counted == 5


def test_a_run_comes_back_to_the_bit(tmp_path):
    loader = batches(6, 2)
    whole = new_run(Net(norm=True), steps=6, ema=0.9, momentum=0.9)
    train(whole.model, loader, run=whole)

    half = new_run(Net(norm=True), steps=6, ema=0.9, momentum=0.9)
    train(half.model, loader[:3], run=half)
    facts = {"architecture": "net", "dataset": "none", "class_names": ["a", "b"], "config": ""}
    half.facts = facts
    save_checkpoint(tmp_path / "last.pt", half.state(random_state(WORLD)))
    rest = new_run(Net(norm=True), steps=6, ema=0.9, momentum=0.9)
    rest.restore(read_resumable(tmp_path / "last.pt", read_checkpoint, "net", ["a", "b"]), WORLD)
    train(rest.model, loader[3:], run=rest)
    for kind in ("model", "averaged.model"):
        for r in (whole, rest):
            r.weights()  # which brings the counters along
        one, two = (operator.attrgetter(kind)(r).state_dict() for r in (whole, rest))
        assert all(torch.equal(one[key], two[key]) for key in one), kind
    assert rest.progress.sums == whole.progress.sums and rest.progress.step == 6


def test_the_captured_step_is_asked_with_what_it_may_copy():
    """On the CPU nothing is recorded; what the recorder is given must be all that changes."""
    seen = []

    def capture(compute, inputs):
        seen.append(inputs)
        return compute(inputs)

    run = new_run(Net(), steps=2)
    train(run.model, batches(2, 2), run=run, capture=capture)
    assert len(seen) == 2 and all(isinstance(t, Tensor) for t in seen[0][0][:2])
    assert seen[0][0][2] is None


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


def scored(networks, loader, **more):
    counts = evaluate(
        networks,
        loader,
        lambda: ConfusionMatrix(2),
        world=WORLD,
        **more,
    )
    return counts


def test_evaluation_counts_every_image_and_a_stop_makes_it_void(stop):
    model, other, loader, seen = Net(), Net(norm=True).eval(), batches(3, 2), []
    done = scored({"a": model, "b": other}, loader, stop=stop, on_batch=lambda b, _: seen.append(b))
    assert list(done) == ["a", "b"] and len(seen) == 3
    for name, network in (("a", model), ("b", other)):
        assert int(done[name].matrix.sum()) == 6 * 16
        right = sum(int((network(b["image"]).argmax(1) == b["label"]).sum()) for b in loader)
        assert int(done[name].matrix.diagonal().sum()) == right
    stop.asked = True
    assert scored({"a": model}, loader, stop=stop) is None


def test_logits_are_scored_at_the_size_before_scaling():
    model, seen = Net(), []
    image = torch.randn(1, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    label = torch.zeros(1, 6, 9, dtype=torch.uint8)
    batch = {"image": image, "label": label, "size": [(6, 9)]}
    done = scored({"a": model}, [batch], on_batch=lambda _, p: seen.append(p))
    logits = torch.nn.functional.interpolate(model(image), (6, 9), mode="bilinear")
    assert torch.equal(seen[0], logits.argmax(1))
    assert int(done["a"].matrix.sum()) == 54
    two = {"image": image.repeat(2, 1, 1, 1), "size": [(6, 9), (9, 6)]}
    with pytest.raises(ValueError, match=r"set TEST\.BATCH_SIZE_PER_GPU 1"):
        scored({"a": model}, [two])


def test_precisions():
    assert Precision.choose("bf16", CPU).name == "bf16"
    assert Precision.choose("auto", CPU).name in ("bf16", "fp32")
    with pytest.raises(ValueError, match="fp16 needs a CUDA device; on the CPU: auto, fp32"):
        Precision.choose("fp16", CPU)
    mps = torch.device("mps")
    assert Precision.choose("auto", mps).name == "fp32"
    with pytest.raises(ValueError, match="fp16 needs a CUDA device; on mps: auto, fp32"):
        Precision.choose("fp16", mps)
