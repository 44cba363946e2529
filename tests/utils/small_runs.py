"""Runs of a network of one convolution, for tests of the training loop."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from utils.averaging import AveragedWeights
from utils.distributed import World
from utils.engine import train_one_epoch
from utils.optim import build_optimizer
from utils.run_state import Plan, Precision, Run
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
