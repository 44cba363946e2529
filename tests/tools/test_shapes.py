"""The page about RTLinearFormer's shape, and the kernel list behind its predictions."""

import pytest
import torch
from pages.kernel_model import join, list_kernels, predict
from pages.shapes import CHOSEN, build
from torch import nn

from models import build_model, fuse


class Residual(nn.Module):
    """A convolution whose sum with its input is ReLUd, behind one that is only ReLUd."""

    def __init__(self, groups: int = 1) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 64, 3, padding=1)
        self.second = nn.Conv2d(64, 64, 3, padding=1, groups=groups)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.first(x))
        return torch.relu(self.second(x) + x)


def test_what_runs_within_a_convolution_is_no_kernel_of_its_own():
    kernels = list_kernels(Residual(), torch.float16, (32, 64))
    assert [k.op for k in kernels] == ["convolution", "relu", "convolution", "add", "relu"]
    joined = join(kernels)
    assert [k.op for k in joined] == ["convolution"] * 2
    size = 64 * 32 * 64 * 2
    assert [k.extra for k in joined] == [0, size]
    weights = 2 * (64 * 64 * 9 + 64)
    assert joined[1].bytes == 3 * size + weights


def test_grouped_convolutions_leave_bias_and_relu_to_others():
    joined = join(list_kernels(Residual(groups=4), torch.float16, (32, 64)))
    assert [k.op for k in joined] == ["convolution", "convolution", "bias", "add", "relu"]


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_joining_saves_time(dtype):
    model = fuse(build_model("rtlinearformer_slim", 19))
    plain, joined = (predict(model, dtype, joined=flag) for flag in (False, True))
    assert joined.milliseconds < 0.9 * plain.milliseconds
    assert joined.kernels < plain.kernels and joined.bytes < plain.bytes


@pytest.mark.parametrize("width", ["base", "slim"])
def test_the_chosen_shape_is_the_default(width):
    chosen, default = build(CHOSEN, width), fuse(build_model(f"rtlinearformer_{width}", 19))
    image = torch.randn(1, 3, 64, 64)
    default.load_state_dict(chosen.state_dict())
    with torch.no_grad():
        assert torch.equal(chosen(image), default(image))


def test_the_page_is_up_to_date(run):
    run("tools/pages/shapes.py", "--check")
