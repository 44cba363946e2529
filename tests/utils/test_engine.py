"""One epoch: losses that are not finite, gradient accumulation, what a resumed epoch reports."""

from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

from utils.distributed import World
from utils.engine import MAX_BAD_STEPS, TrainForm, evaluate, train_one_epoch
from utils.metrics import ConfusionMatrix
from utils.run_state import Precision, Progress, StopRequest

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


@pytest.fixture
def stop(monkeypatch):
    monkeypatch.setattr("utils.run_state.signal.signal", lambda *_: None)
    return StopRequest()


def train(model, loader, stop, *, progress=None, steps=None, accumulate=1, **more):
    log, progress = Log(), progress or Progress()
    precision = Precision.choose("fp32", CPU)
    finished = train_one_epoch(
        TrainForm(model),
        criterion,
        loader,
        torch.optim.SGD([{"params": list(model.parameters()), "lr_scale": 1.0}], lr=0.1),
        world=WORLD,
        precision=precision,
        scaler=precision.scaler(),
        progress=progress,
        steps_per_epoch=steps or len(loader) // accumulate,
        lr_of_step=lambda step: 0.1,
        log=log,
        stop=stop,
        accumulate=accumulate,
        **more,
    )
    return finished, progress, log


def test_a_step_without_a_finite_loss_is_skipped_counted_and_named(stop):
    model = Net()
    finished, progress, log = train(model, batches(4, 2, poison=[3]), stop)
    assert finished and progress.skipped == 1 and progress.step_in_epoch == 4
    assert log.lines == ["step 2 skipped: not finite on image2, image3"]
    assert all(p.isfinite().all() for p in model.parameters())
    assert 0 < progress.means()["loss"] < 10


def test_images_that_others_replaced_are_counted_and_named(stop):
    loader = batches(3, 2)
    loader[1]["skipped"] = [[], ["image7 is empty (0 bytes)", "image9 is gone"]]
    loader[2]["skipped"] = [[], []]
    _, progress, log = train(Net(), loader, stop)
    assert progress.unreadable == 2 and progress.skipped == 0
    assert log.lines == [
        "step 2: image7 is empty (0 bytes); another image took its place",
        "step 2: image9 is gone; another image took its place",
    ]
    progress.end_epoch()
    assert progress.unreadable == 0


def test_a_skipped_step_leaves_no_trace_in_the_norms(stop):
    model = Net(norm=True)
    train(model, batches(2, 2, poison=[2]), stop)
    clean = Net(norm=True)
    train(clean, batches(2, 2)[:1], stop)
    for name, buffer in clean.named_buffers():
        assert torch.equal(buffer, dict(model.named_buffers())[name]), name
    assert model.eval()(torch.zeros(1, 3, 4, 4)).isfinite().all()


def test_a_finite_loss_with_a_broken_gradient_is_skipped(stop):
    model = Net()
    before = model.conv.weight.detach().clone()
    model.conv.weight.register_hook(lambda gradient: gradient * float("nan"))
    _, progress, _ = train(model, batches(2, 2), stop, clip_grad=1.0)
    assert progress.skipped == 2 and torch.equal(model.conv.weight, before)
    assert progress.means() == {"loss": None}


def test_a_run_that_never_recovers_ends_however_short_its_epochs(stop):
    progress, epochs = Progress(), 0
    with pytest.raises(FloatingPointError, match=r"20 steps in a row.*TRAIN\.LR"):
        while epochs < MAX_BAD_STEPS:
            train(Net(), batches(3, 1, poison=range(3)), stop, progress=progress)
            progress.end_epoch()
            epochs += 1
    assert epochs == MAX_BAD_STEPS // 3


def test_accumulated_batches_are_one_larger_batch(stop):
    whole, split = Net(), Net()
    train(whole, batches(2, 4), stop)
    train(split, batches(4, 2), stop, accumulate=2)
    for a, b in zip(whole.parameters(), split.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_gradients_are_clipped(stop):
    free, clipped = Net(), Net()
    before = free.conv.weight.detach().clone()
    train(free, batches(1, 4), stop)
    train(clipped, batches(1, 4), stop, clip_grad=0.01)
    moved = [(m.conv.weight - before).norm().item() for m in (free, clipped)]
    assert moved[1] < moved[0] and moved[1] <= 0.1 * 0.01 * 1.001


def test_a_stop_ends_after_the_step_and_the_rest_completes_the_means(stop):
    model, loader = Net(), batches(4, 2)
    _, reference, _ = train(Net(), loader, stop)

    def first_two():
        yield loader[0]
        stop.signal = 15
        yield loader[1]

    finished, progress, _ = train(model, first_two(), stop, steps=4)
    assert not finished and progress.step_in_epoch == 2
    stop.signal = None
    finished, progress, log = train(model, loader[2:], stop, progress=progress, steps=4)
    assert finished and log.steps == [3, 4]
    assert progress.means() == pytest.approx(reference.means())
    assert progress.means()["grad_norm"] > 0


def test_evaluation_counts_every_image_and_a_stop_makes_it_void(stop):
    model, loader, seen = Net(), batches(3, 2), []
    confusion = ConfusionMatrix(2)
    done = evaluate(
        model, loader, confusion, world=WORLD, stop=stop, on_batch=lambda b, _: seen.append(b)
    )
    assert done and len(seen) == 3 and int(confusion.matrix.sum()) == 6 * 16
    expected = sum(int((model(b["image"]).argmax(1) == b["label"]).sum()) for b in loader)
    assert int(confusion.matrix.diagonal().sum()) == expected
    stop.signal = 2
    assert not evaluate(model, loader, ConfusionMatrix(2), world=WORLD, stop=stop)


def test_logits_are_scored_at_the_size_before_scaling():
    model, confusion, seen = Net(), ConfusionMatrix(2), []
    image = torch.randn(1, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    label = torch.zeros(1, 6, 9, dtype=torch.uint8)
    batch = {"image": image, "label": label, "size": [(6, 9)]}
    evaluate(model, [batch], confusion, world=WORLD, on_batch=lambda _, p: seen.append(p))
    logits = torch.nn.functional.interpolate(model(image), (6, 9), mode="bilinear")
    assert torch.equal(seen[0], logits.argmax(1))
    assert int(confusion.matrix.sum()) == 54
    two = {"image": image.repeat(2, 1, 1, 1), "size": [(6, 9), (9, 6)]}
    with pytest.raises(ValueError, match=r"set TEST\.BATCH_SIZE_PER_GPU 1"):
        evaluate(model, [two], confusion, world=WORLD)


def test_precisions():
    assert Precision.choose("bf16", CPU).name == "bf16"
    assert Precision.choose("auto", CPU).name in ("bf16", "fp32")
    with pytest.raises(ValueError, match="fp16 needs a CUDA device; on the CPU: auto, fp32"):
        Precision.choose("fp16", CPU)
    mps = torch.device("mps")
    assert Precision.choose("auto", mps).name == "fp32"
    with pytest.raises(ValueError, match="fp16 needs a CUDA device; on mps: auto, fp32"):
        Precision.choose("fp16", mps)
