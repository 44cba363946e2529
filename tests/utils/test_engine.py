"""One epoch: losses that are not finite, gradient accumulation, what a resumed epoch reports."""

import operator

import pytest
import torch
from small_runs import CPU, WORLD, Log, Net, batches, criterion, new_run, new_step, train
from torch import Tensor

from models.weights import read_checkpoint
from utils.checkpoint import read_resumable, save_checkpoint
from utils.engine import evaluate, train_one_epoch
from utils.metrics import ConfusionMatrix
from utils.optim import build_optimizer
from utils.run_state import MAX_BAD_STEPS, Precision, random_state


class Stop:
    """What a signal sets."""

    asked = False

    def __call__(self):
        return self.asked


@pytest.fixture
def stop():
    return Stop()


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
