"""Inference: views, windows, borders and padding, on networks whose answer is known."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from utils.inference import _starts, predict_logits


class Stub(nn.Module):
    """A network that counts its calls; `body` gives logits at stride `size_divisor`."""

    def __init__(self, body, size_divisor=1):
        super().__init__()
        self.body, self.size_divisor = body, size_divisor
        self.shapes = []

    def forward(self, x):
        self.shapes.append(tuple(x.shape))
        return self.body(x)

    def upsample(self, logits, size):
        if logits.shape[-2:] == tuple(size):
            return logits
        return F.interpolate(logits, size=size, mode="bilinear", align_corners=False)

    def check_size(self, height, width):
        if height % self.size_divisor or width % self.size_divisor:
            raise ValueError(f"input {height}x{width} is not a multiple of {self.size_divisor}")


def _pixelwise(**kwargs) -> Stub:
    torch.manual_seed(0)
    return Stub(nn.Conv2d(3, 5, 1), **kwargs).eval()


def _strided() -> Stub:
    torch.manual_seed(0)
    return Stub(nn.Conv2d(3, 5, 8, 8), size_divisor=8).eval()


def _image(*size: int) -> torch.Tensor:
    return torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1))


def test_one_view_is_the_upsampled_output():
    model, image = _strided(), _image(16, 24)
    expected = model.upsample(model(image), (16, 24))
    logits = predict_logits(model, image)
    assert torch.equal(logits, expected) and not logits.requires_grad
    assert predict_logits(_strided().bfloat16(), image.bfloat16()).dtype == torch.float32


@pytest.mark.parametrize("size", [(30, 41), (31, 17), (7, 50), (5, 5)])
@pytest.mark.parametrize("stride", [None, (3, 5), (12, 16)])
def test_windows_of_a_pixelwise_network_give_the_whole(size, stride):
    model, image = _pixelwise(), _image(*size)
    slid = predict_logits(model, image, mode="slide", crop_size=(12, 16), stride=stride)
    assert torch.allclose(slid, model(image), atol=1e-5)


def test_windows_cover_the_borders_and_go_in_batches():
    assert _starts(30, 12, 8) == [0, 8, 16, 18]
    assert _starts(28, 12, 8) == [0, 8, 16]
    assert _starts(12, 12, 8) == [0]
    model = _pixelwise()
    predict_logits(
        model, _image(30, 12), mode="slide", crop_size=(12, 16), stride=(8, 8), window_batch=3
    )
    assert model.shapes == [(6, 3, 12, 12), (2, 3, 12, 12)]


def test_overlapping_windows_are_averaged():
    """Logits that are constant in a window, its mean colour: a pixel gets its windows' mean."""
    model = Stub(lambda x: x.mean((2, 3), keepdim=True).expand(-1, -1, *x.shape[2:]))
    image = _image(4, 6)
    slid = predict_logits(model, image, mode="slide", crop_size=(4, 4), stride=(4, 2))
    left, right = image[..., :4].mean((2, 3)), image[..., 2:].mean((2, 3))
    assert torch.allclose(slid[..., 0, 0], left, atol=1e-6)
    assert torch.allclose(slid[..., 3, 3], (left + right) / 2, atol=1e-6)
    assert torch.allclose(slid[..., 0, 5], right, atol=1e-6)


def test_views_average_probabilities():
    torch.manual_seed(2)
    model, image = Stub(nn.Conv2d(3, 5, 3, padding=1)).eval(), _image(20, 12)
    views = []
    for scale in (0.5, 1.0, 1.5):
        size = (int(20 * scale), int(12 * scale))
        view = image if scale == 1 else F.interpolate(image, size=size, mode="bilinear")
        for mirror in (False, True):
            logits = model(view.flip(-1) if mirror else view)
            logits = logits.flip(-1) if mirror else logits
            views.append(model.upsample(logits, (20, 12)).softmax(1))
    expected = torch.stack(views).mean(0)
    logits = predict_logits(model, image, flip=True, scales=(0.5, 1.0, 1.5))
    assert torch.allclose(logits.softmax(1), expected, atol=1e-6)
    assert torch.equal(logits.argmax(1), expected.argmax(1))


def test_flip_of_a_pixelwise_network_changes_nothing():
    model, image = _pixelwise(), _image(8, 9)
    flipped = predict_logits(model, image, flip=True)
    assert torch.allclose(flipped, model(image).log_softmax(1), atol=1e-5)


def test_huge_logits_stay_finite():
    model = Stub(lambda x: x * 1e4)
    logits = predict_logits(model, _image(6, 6), flip=True, scales=(1.0, 2.0))
    assert logits.isfinite().all()


def test_sizes_that_the_network_cannot_take():
    model, image = _strided(), _image(18, 21)
    with pytest.raises(ValueError, match="input 18x21 is not a multiple of 8"):
        predict_logits(model, image)
    with pytest.raises(ValueError, match="input 20x12 is not a multiple of 8"):
        predict_logits(model, _image(40, 24), scales=(0.5,))
    logits = predict_logits(model, image, pad=True)
    expected = model.upsample(model(F.pad(image, (0, 3, 0, 6))), (24, 24))[..., :18, :21]
    assert torch.equal(logits, expected)
    assert model.shapes[-1] == (2, 3, 24, 24)
    slid = predict_logits(model, image, mode="slide", crop_size=(16, 30), pad=True, scales=(0.5,))
    assert slid.shape == (2, 5, 18, 21)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mode": "tiles"}, "inference mode is 'tiles'; it must be one of whole, slide"),
        ({"mode": "slide"}, "crop_size is None"),
        ({"mode": "slide", "crop_size": (4, 4), "stride": (5, 4)}, "would leave pixels out"),
        ({"mode": "slide", "crop_size": (4, 4), "stride": (0, 4)}, "between 1 and the crop size"),
        ({"scales": ()}, "at least one"),
        ({"scales": (1.0, -0.5)}, "all positive"),
    ],
)
def test_bad_settings(arguments, message):
    with pytest.raises(ValueError, match=message):
        predict_logits(_pixelwise(), _image(8, 8), **arguments)
