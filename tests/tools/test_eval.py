"""Evaluation as a user runs it: scores, pictures, submission files, and bad files of every kind."""

import json

import cv2
import numpy as np
import pytest
import torch

from datasets import get_meta
from datasets.synthetic import draw_scene

RUN = "synthetic/rtlinearformer_slim_synthetic"


@pytest.fixture(scope="module")
def trained(tmp_path_factory, run, tiny):
    """The output folder of a short run."""
    folder = tmp_path_factory.mktemp("trained")
    run("tools/train.py", *tiny, "OUTPUT_DIR", folder)
    return folder


def score(output):
    lines = [line for line in output.splitlines() if line.startswith("mIoU ")]
    assert len(lines) == 1, output
    return float(lines[0].split()[1])


def test_best_weights_give_the_score_that_training_reported(trained, run, tiny):
    done = run("tools/eval.py", *tiny, "OUTPUT_DIR", trained)
    folder = trained / RUN
    record = json.loads((folder / "eval_100-104.json").read_text())
    best = torch.load(folder / "best.pt", weights_only=True)["progress"]["best_miou"]
    assert record["scores"]["mIoU"] == pytest.approx(best, abs=2e-4)
    assert score(done.stdout) == round(100 * record["scores"]["mIoU"], 2)
    assert record["images"] == 4 and len(record["weights_sha256"]) == 64
    assert record["scores"]["pixels"] == 4 * 64 * 96
    assert "precision" in (folder / "eval_100-104.txt").read_text()
    pictures = sorted((folder / "overlays_100-104").iterdir())
    assert [p.stem for p in pictures] == ["scene_000100", "scene_000103"]
    assert cv2.imread(str(pictures[0])).shape == (64, 3 * 96 + 2 * 6, 3)


def test_views_and_windows_run_and_are_recorded(trained, run, tiny):
    views = "TEST.FLIP_TEST True TEST.SCALES (0.75,1.0) TEST.SLIDE (64,48) TEST.STRIDE (32,24)"
    model = trained / RUN / "last.pt"
    run("tools/eval.py", *tiny, "OUTPUT_DIR", trained, *views.split(), "TEST.MODEL_FILE", model)
    record = json.loads((trained / RUN / "eval_100-104_last_flip_scales_slide.json").read_text())
    assert record["views"]["flip"] is True and record["views"]["scales"] == [0.75, 1.0]
    assert record["views"]["crop_size"] == [48, 64] and record["weights"] == str(model)


@pytest.fixture
def camvid(tmp_path):
    """A small data set in CamVid's 480x360 layout: colour photograph, index label."""
    meta = get_meta("camvid")
    folder = tmp_path / "data" / "camvid"
    for name in ("images", "labels"):
        (folder / name).mkdir(parents=True)
    lines = []
    for index in range(3):
        image, label = draw_scene(index, 0, 64, 96)
        cv2.imwrite(str(folder / f"images/{index}.png"), image[..., ::-1])
        cv2.imwrite(str(folder / f"labels/{index}.png"), meta.decode(label, "index"))
        lines.append(f"images/{index}.png\tlabels/{index}.png")
    write_list(tmp_path, lines)
    return folder


def write_list(tmp_path, lines):
    target = tmp_path / "data/list/camvid"
    target.mkdir(parents=True, exist_ok=True)
    for name in ("train.lst", "val.lst"):
        (target / name).write_text("\n".join(lines) + "\n")


def camvid_run(tmp_path, tiny):
    options = tiny[2 : tiny.index("DATASET.SIZE")]
    return [
        *("--cfg", "configs/camvid/rtlinearformer_slim_camvid_360x480.yaml", *options),
        *("DATASET.ROOT", tmp_path / "data", "OUTPUT_DIR", tmp_path / "out", "WORKERS", 0),
        *("TRAIN.IMAGE_SIZE", "(96,64)", "TRAIN.BASE_SIZE", 0, "TRAIN.BATCH_SIZE_PER_GPU", 3),
        *("TRAIN.END_EPOCH", 1),
    ]


def test_files_on_disk_train_and_score(camvid, tmp_path, run, tiny):
    arguments = camvid_run(tmp_path, tiny)
    run("tools/train.py", *arguments)
    done = run("tools/eval.py", *arguments)
    assert 0 <= score(done.stdout) <= 100
    write_list(tmp_path, [f"images/{i}.png" for i in range(3)])  # no labels: predictions only
    done = run("tools/eval.py", *arguments)
    assert "no score" in done.stdout
    folder = tmp_path / "out/camvid/rtlinearformer_slim_camvid_360x480/submission_val"
    written = cv2.imread(str(folder / "0.png"), cv2.IMREAD_UNCHANGED)
    assert written.shape == (64, 96) and set(np.unique(written)) <= set(range(11))
    classes = get_meta("camvid").encode(written, "index")
    assert len(np.unique(classes)) > 1


def rgb_mask(camvid):
    cv2.imwrite(str(camvid / "labels/0.png"), np.zeros((64, 96, 3), np.uint8))


def value_33(camvid):
    cv2.imwrite(str(camvid / "labels/0.png"), np.full((64, 96), 33, np.uint8))


def truncated(camvid):
    path = camvid / "images/0.png"
    path.write_bytes(path.read_bytes()[:-2000])


def other_size(camvid):
    cv2.imwrite(str(camvid / "labels/0.png"), np.zeros((60, 96), np.uint8))


DAMAGE = {
    "missing image": (lambda c: (c / "images/1.png").unlink(), ["list", ":2:", "images/1.png"]),
    "label value 33": (value_33, ["33", "labels/0.png", "camvid (0..10)"]),
    "RGB mask": (rgb_mask, ["labels/0.png", "DATASET.LABELS"]),
    "truncated PNG": (truncated, ["images/0.png", "truncated"]),
    "sizes differ": (other_size, ["labels/0.png", "60x96", "64x96"]),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damaged_data_stops_training_before_it_starts(name, camvid, tmp_path, refuses, tiny):
    damage, words = DAMAGE[name]
    damage(camvid)
    refuses(words, "tools/train.py", *camvid_run(tmp_path, tiny))
    assert not (tmp_path / "out").exists()


def test_bad_weights_are_one_sentence(trained, tmp_path, refuses, tiny):
    best = trained / RUN / "best.pt"
    content = torch.load(best, weights_only=True)
    content["class_names"] = content["class_names"][:5]
    torch.save(content, tmp_path / "other.pt")
    (tmp_path / "cut.pt").write_bytes(best.read_bytes()[:5000])
    (tmp_path / "empty.pt").touch()
    for name, words in {
        "other.pt": ["other.pt was trained on synthetic (5 classes)", "RESET"],
        "cut.pt": ["cut.pt"],
        "empty.pt": ["empty.pt", "empty"],
        "gone.pt": ["gone.pt", "not exist"],
    }.items():
        arguments = [*tiny, "OUTPUT_DIR", trained, "TEST.MODEL_FILE", tmp_path / name]
        refuses(words, "tools/eval.py", *arguments)
    words = ["best.pt", "train first"]
    refuses(words, "tools/eval.py", *tiny, "OUTPUT_DIR", tmp_path / "new")
