"""What is refused before a run: options of networks, sizes of scored images, useless settings."""

import numpy as np
import pytest
from builders import build_dataset
from checks import (
    LONGEST_SIDE,
    check_network,
    check_test_batch,
    refuse_changes,
    unused_reset,
)

from configs import get_config
from datasets import get_meta
from datasets.transforms import Sample
from models.weights.rtlinearformer import EARLIER

OPTIONS = {  # network -> options that it cannot be built from, or not run with
    "rtlinearformer_slim": {
        "focus_power": ["nan", "foo", "1e999", "()"],
        "low_to_high": ["foo", "()"],
        "base_channels": ["0", "-1", "1.5", "nan"],
        "kv_pool_size": ["-1", "foo", "1.5"],
    },
    "rtformer_slim": {"cross_size": ["0", "-1", "foo", "()", "None"], "num_heads": ["-1"]},
    "pidnet_s": {"stem_blocks": ["0"], "base_channels": ["0"], "head_channels": ["nan"]},
    "bisenetv2": {"expansion": ["0", "foo"]},
    "lrformer_t": {"depths": ["foo", "(1,)"]},
}


@pytest.fixture
def config(tiny):
    """The configuration of a tiny run on drawn scenes with further settings."""

    def build(*more):
        return get_config(tiny[1], [*tiny[8:], *map(str, more)])

    return build


@pytest.mark.medium
@pytest.mark.filterwarnings("ignore:Initializing zero-element")
@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("batch", [1, 4])
def test_options_without_a_network_are_one_sentence(name, batch, root):
    meta = get_meta("camvid")
    usual = ["MODEL.NAME", name, "TRAIN.IMAGE_SIZE", "(96, 64)", "TRAIN.BATCH_SIZE_PER_GPU", batch]
    for option, values in OPTIONS[name].items():
        for value in values:
            words = [*map(str, usual), f"MODEL.OPTIONS.{option}", value]
            settings = get_config(root / "configs/camvid/pidnet_s_camvid.yaml", words)
            with pytest.raises(ValueError) as caught:
                check_network(settings, meta, 1)
            message = str(caught.value)
            assert f"MODEL.NAME {name} with MODEL.OPTIONS {{'{option}'" in message
            assert "\n" not in message and "TRAIN.BATCH_SIZE_PER_GPU" not in message


def test_training_keeps_an_earlier_run_when_it_refuses_options(tiny, tmp_path, refuses):
    folder = tmp_path / "synthetic/rtlinearformer_slim_synthetic"
    folder.mkdir(parents=True)
    (folder / "last.pt").write_bytes(b"earlier")
    for option, value in (("focus_power", "foo"), ("low_to_high", "foo"), ("kv_pool_size", "-1")):
        words = ["MODEL.OPTIONS" if option == "kv_pool_size" else "rtlinearformer_slim", option]
        refuses(
            words, "tools/train.py", *tiny, "OUTPUT_DIR", tmp_path, f"MODEL.OPTIONS.{option}", value
        )
    assert [path.name for path in folder.iterdir()] == ["last.pt"]
    assert [path.name for path in tmp_path.iterdir()] == ["synthetic"]


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("TEST.SIZE_DIVISOR", 99999999),
        ("TEST.SIZE_DIVISOR", 2**31 - 1),
        ("TEST.SHORT_SIDE", 99999999),
        ("TEST.SHORT_SIDE", 30000),
        ("TEST.SHORT_SIDE", 20000),  # sides that can be, but too many pixels
        ("TEST.LONG_SIDE", 100000),
        ("TEST.SCALES", "(100000,)"),
        ("TEST.SCALES", "(0.5, 1e9)"),
        ("TEST.SCALES", f"({2**31 - 1},)"),
    ],
)
def test_scored_images_have_a_largest_size(config, key, value, batch):
    settings = config(key, value, "TEST.BATCH_SIZE_PER_GPU", batch)
    dataset = build_dataset(settings, train=False)
    with pytest.raises(ValueError, match=rf"{key} .* from 64x96 to \d.*{LONGEST_SIDE}") as caught:
        check_test_batch(settings, dataset)
    assert "\n" not in str(caught.value)


def test_usual_sizes_are_scored(config):
    for more in (
        (),
        ("TEST.SHORT_SIDE", 512, "TEST.LONG_SIDE", 2048, "TEST.SIZE_DIVISOR", 32),
        ("TEST.SCALES", "(0.5, 0.75, 1, 1.25, 2)"),
        ("TEST.SCALES", "(1e-300,)"),
    ):
        check_test_batch(config(*more), build_dataset(config(*more), train=False))


def test_an_image_may_be_large_by_itself(config):
    class Panorama:
        def __len__(self):
            return 3

        def load(self, index):
            return Sample(np.broadcast_to(np.zeros(3, np.uint8), (9000, 40000, 3)))

        def name(self, index):
            return "panorama.png"

    check_test_batch(config(), Panorama())
    check_test_batch(config("TEST.SHORT_SIDE", 512), Panorama())
    check_test_batch(config("TEST.SCALES", "(0.5,)"), Panorama())
    with pytest.raises(ValueError, match=r"TEST.SCALES \(2,\) would bring panorama.png from"):
        check_test_batch(config("TEST.SCALES", "(2,)"), Panorama())


@pytest.mark.parametrize(
    ("reset", "weights", "told"), [("()", "", 0), ("head", "", 1), ("('a','b')", "x.pt", 0)]
)
def test_reset_without_weights_is_told(config, reset, weights, told):
    found = unused_reset(config("MODEL.RESET", reset, "MODEL.PRETRAINED", weights))
    assert len(found) == told
    assert all("MODEL.RESET ('head',)" in line and "MODEL.PRETRAINED" in line for line in found)


def test_a_run_goes_on_with_the_network_that_it_was_begun_with(config):
    """Also where its configuration is silent, as the defaults were others."""
    words = [word for key, value in EARLIER.items() for word in (f"MODEL.OPTIONS.{key}", value)]
    begun, built = config(), dict(config().MODEL.OPTIONS) | EARLIER | {"scales": [3, 5]}
    refuse_changes(config(*words), begun.dump(), built, "last.pt")
    with pytest.raises(ValueError, match=r"last.pt is a run with MODEL.OPTIONS.feed_forward inver"):
        refuse_changes(begun, begun.dump(), built, "last.pt")
    with pytest.raises(ValueError, match=r"MODEL.OPTIONS.power None.* cannot become 2"):
        refuse_changes(config("MODEL.OPTIONS.power", 2), begun.dump(), begun.MODEL.OPTIONS, "x")
