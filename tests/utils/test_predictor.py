"""A trained network on pictures of any size."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from datasets import EvalTransform, Sample
from models import build_model, fuse
from utils.inference import predict_logits
from utils.predictor import Predictor
from utils.resize import resize

NAMES, PALETTE = ("sky", "road", "tree"), ((1, 2, 3), (40, 50, 60), (200, 210, 220))
NETWORKS = {
    "pidnet_s": {"base_channels": 4, "context_channels": 6, "head_channels": 8},
    "rtlinearformer_slim": {
        "base_channels": 8, "attention_channels": 16, "head_channels": 16, "context_channels": 16,
    },
    "lrformer_t": {"embed_dims": (8, 8, 8, 8), "num_heads": (1, 1, 1, 1), "head_channels": 8},
}  # fmt: skip


def network(name="pidnet_s"):
    torch.manual_seed(0)
    return fuse(build_model(name, 3, **NETWORKS[name]).eval())


def picture(*size):
    return np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("size", [(1, 1), (1, 131), (70, 3), (65, 97)])
def test_any_size(name, size):
    predictor = Predictor(network(name), EvalTransform(), NAMES, PALETTE, device="cpu")
    classes = predictor(picture(*size))
    assert classes.shape == size and classes.dtype == np.uint8 and classes.max() < 3


@pytest.mark.parametrize("facts", [{}, {"short_side": 64, "size_divisor": 32}, {"long_side": 96}])
def test_it_sees_what_evaluation_sees(facts):
    """Where nothing is padded, the class map is the one that is scored."""
    net, transform, image = network(), EvalTransform.from_facts(facts), picture(96, 128)
    classes = Predictor(net, transform, NAMES, PALETTE, device="cpu")(image)
    fed = torch.from_numpy(transform(Sample(image)).image)[None]
    scored = resize(predict_logits(net, fed), (96, 128)).argmax(1)[0].numpy()
    assert (classes == scored).mean() > 0.999 and len(np.unique(scored)) > 1


def test_windows_cover_large_pictures():
    net, image = network(), picture(100, 150)
    predictor = Predictor(net, EvalTransform(), NAMES, PALETTE, device="cpu", slide=(64, 96))
    fed = torch.from_numpy(EvalTransform().image(image))[None]
    logits = predict_logits(net, fed, mode="slide", crop_size=(64, 96), pad=True)
    assert (predictor(image) == logits.argmax(1)[0].numpy()).mean() > 0.999


@pytest.mark.parametrize("slide", [None, (64, 96)])
@pytest.mark.parametrize("facts", [{}, {"short_side": 64}])
def test_the_halves_give_the_whole_from_other_threads(slide, facts):
    transform = EvalTransform.from_facts(facts)
    predictor = Predictor(network(), transform, NAMES, PALETTE, device="cpu", slide=slide)
    pictures = [picture(90 + number, 100) for number in range(6)]
    with ThreadPoolExecutor(3) as pool:
        fed = list(pool.map(predictor.prepare, pictures))
        found = list(pool.map(lambda one: predictor.run(one).cpu().numpy(), fed))
    for one, image in zip(found, pictures, strict=True):
        assert np.array_equal(one, predictor(image)) and one.flags.c_contiguous


def test_a_device_that_is_not_here_is_refused():
    with pytest.raises(ValueError, match=r"device 'cuda:9' is not on this machine; accepted: auto"):
        Predictor(network(), EvalTransform(), NAMES, PALETTE, device="cuda:9")
    assert Predictor(network(), EvalTransform(), NAMES, PALETTE).device == torch.device("cpu")


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((4, 4, 3), np.float32),
        np.zeros((0, 4, 3), np.uint8),
        "photograph.jpg",
    ],
    ids=str,
)
def test_what_is_no_picture_is_refused(image):
    predictor = Predictor(network(), EvalTransform(), NAMES, PALETTE, device="cpu")
    with pytest.raises(ValueError, match="the picture is"):
        predictor(image)


def test_colours_and_shares():
    predictor = Predictor(network(), EvalTransform(), NAMES, PALETTE, device="cpu")
    classes = np.array([[0, 0, 2, 2], [0, 0, 2, 2]], np.uint8)
    image = np.full((2, 4, 3), 100, np.uint8)
    assert predictor.colorize(classes)[0].tolist() == [[1, 2, 3]] * 2 + [[200, 210, 220]] * 2
    assert predictor.shares(classes) == {"sky": 0.5, "road": 0.0, "tree": 0.5}
    assert predictor.overlay(image, classes, opacity=0.0).tolist() == image.tolist()
    assert predictor.overlay(image, classes, opacity=0.5)[0, 3].tolist() == [150, 155, 160]
