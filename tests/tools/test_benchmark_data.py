"""The loading benchmark: both sides do the same work, records and page agree."""

import json

import numpy as np
import pytest
from pages.published_loading import PublishedLoading

from datasets import SegmentationDataset, TrainTransform, get_meta

CONFIG = "configs/camvid/pidnet_s_camvid_360x480.yaml"
DATA = ["DATASET.TRAIN_SET", "list/camvid/val.lst"]
WAYS = {"published", "none", "ram", "disk"}


@pytest.mark.parametrize(("scale", "crop"), [(1, (360, 480)), (1.5, (540, 720)), (0.5, (200, 250))])
def test_the_published_work_gives_what_ours_gives(shared, scale, crop):
    """On whole images, where both have the same window; the last one is padded."""
    transform = TrainTransform(crop, scale_range=(scale, scale), flip=False, boundary=True)
    dataset = SegmentationDataset(
        shared,
        "list/camvid/val.lst",
        get_meta("camvid"),
        "index",
        transform=transform,
        need_boundary=True,
    )
    image, label, boundary = PublishedLoading(dataset).sample(3, 0)
    item = dataset[3]
    assert image.dtype == np.float32 and label.dtype == np.uint8
    np.testing.assert_allclose(image, item["image"], atol=1e-5)
    assert np.array_equal(label, item["label"]) and np.array_equal(boundary, item["boundary"])


@pytest.fixture(scope="module")
def record(shared, run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("docs")
    file = folder / "records/data_camvid.json"
    size = ["--images", 24, "--rounds", 3, "--record", file, "--about", "Some of CamVid."]
    run("tools/pages/benchmark_data.py", "--cfg", CONFIG, *size, *DATA, "DATASET.ROOT", shared)
    return file


def test_a_record_says_what_was_measured(record):
    content = json.loads(record.read_text())
    assert set(content["milliseconds"]) == WAYS and set(content["ratio"]) == WAYS - {"published"}
    assert all(len(v) == 3 and min(v) > 0 for v in content["milliseconds"].values())
    assert (content["image_size"], content["crop_size"]) == ([360, 480], [360, 480])
    assert "--images 24" in content["command"] and content["environment"]["device"]
    steps = content["steps_milliseconds"]
    assert steps["published"]["normalise"] > 0 and steps["none"]["normalise"] > 0
    assert "decode image" in steps["none"] and "decode image" not in steps["ram"]
    for way, parts in steps.items():  # the parts are parts of the whole
        assert parts["rest"] >= 0, way
    assert content["device"]["resident_bytes"] == 101 * 360 * 480 * 5


def test_the_page_is_what_the_records_say(record, run):
    page = record.parents[1] / "performance.md"
    run("tools/pages/benchmark_data.py", "--page", page)
    text, content = page.read_text(), json.loads(record.read_text())
    assert "## camvid, 480x360, crop 480x360" in text and "Some of CamVid." in text
    assert content["command"] in text and f"{content['ratio']['none']:.2f}" in text
    run("tools/pages/benchmark_data.py", "--page", page, "--check")
    page.write_text(text.replace("times published", "times faster"))
    run("tools/pages/benchmark_data.py", "--page", page, "--check", status=1)


def test_the_page_of_the_project_is_up_to_date(run):
    run("tools/pages/benchmark_data.py", "--page", "docs/performance.md", "--check")


def test_what_cannot_be_measured_is_said(refuses, tmp_path):
    refuses(["--cfg", "--page"], "tools/pages/benchmark_data.py")
    refuses(["no data_*.json"], "tools/pages/benchmark_data.py", "--page", tmp_path / "p.md")
    synthetic = ["--cfg", "configs/synthetic/rtlinearformer_slim_synthetic.yaml"]
    refuses(["synthetic", "no files"], "tools/pages/benchmark_data.py", *synthetic)
    refuses(["--images 0"], "tools/pages/benchmark_data.py", "--cfg", CONFIG, "--images", 0)
