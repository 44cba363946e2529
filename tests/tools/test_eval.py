"""Evaluation as a user runs it: scores, pictures, submission files, and bad files of every kind."""

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from builders import build_network

from configs import get_config
from datasets import get_meta, read_list
from datasets.synthetic import draw_scene
from utils.checkpoint import save_checkpoint
from utils.names import distinct_files

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


def test_best_weights_give_the_score_that_training_reported(trained, call, tiny):
    done = call("tools/eval.py", *tiny, "OUTPUT_DIR", trained)
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
    assert cv2.imread(str(pictures[0])).shape == (64, 4 * 96 + 3 * 6, 3)
    assert cv2.imread(str(folder / "confusion_100-104.png")).shape[0] > 400


def test_views_and_windows_run_and_are_recorded(trained, call, tiny):
    views = "TEST.FLIP_TEST True TEST.SCALES (0.75,1.0) TEST.SLIDE (64,48) TEST.STRIDE (32,24)"
    model = trained / RUN / "last.pt"
    call("tools/eval.py", *tiny, "OUTPUT_DIR", trained, *views.split(), "TEST.MODEL_FILE", model)
    name = "eval_100-104_last_flip_test_scales-0.75-1_slide-64-48_stride-32-24.json"
    record = json.loads((trained / RUN / name).read_text())
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


def test_files_on_disk_train_and_score(camvid, tmp_path, call, tiny):
    arguments = camvid_run(tmp_path, tiny)
    call("tools/train.py", *arguments)
    done = call("tools/eval.py", *arguments)
    assert 0 <= score(done.stdout) <= 100
    write_list(tmp_path, [f"images/{i}.png" for i in range(3)])  # no labels: predictions only
    done = call("tools/eval.py", *arguments)
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


def test_a_last_pt_without_a_scored_epoch_is_named(trained, tmp_path, refuses, tiny):
    folder = tmp_path / RUN
    folder.mkdir(parents=True)
    shutil.copy(trained / RUN / "last.pt", folder)
    arguments = [*tiny, "OUTPUT_DIR", tmp_path]
    words = ["best.pt does not exist", f"set TEST.MODEL_FILE {folder / 'last.pt'}"]
    assert "train first" not in refuses(words, "tools/eval.py", *arguments)
    words = [f"TEST.MODEL_FILE {folder} is a folder; name a file in it, such as best.pt"]
    refuses(words, "tools/eval.py", *arguments, "TEST.MODEL_FILE", folder)
    named = ["MODEL.PRETRAINED", folder / "best.pt"]
    words = [f"MODEL.PRETRAINED {folder / 'best.pt'} does not", f"set MODEL.PRETRAINED {folder}"]
    refuses(words, "tools/train.py", *arguments, *named)


def random_run(tmp_path, tiny, *lists):
    """Arguments for `camvid` with lists of these names, and best.pt of random weights."""
    arguments = camvid_run(tmp_path, tiny)
    config = get_config(arguments[1], list(map(str, arguments[2:])))
    meta = get_meta("camvid")
    network = build_network(config, meta)
    folder = tmp_path / "out/camvid/rtlinearformer_slim_camvid_360x480"
    content = {
        "architecture": network.architecture,
        "options": dict(config.MODEL.OPTIONS),
        "dataset": meta.name,
        "class_names": list(meta.class_names),
        "model": network.state_dict(),
    }
    save_checkpoint(folder / "best.pt", content)
    for name in lists:
        path = tmp_path / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("images/0.png\tlabels/0.png\n")
    return arguments, folder


def records(folder):
    """eval_*.json -> content, without what differs from one run to the next."""
    return {path.name: json.loads(path.read_text()) for path in folder.glob("eval_*.json")}


def test_no_evaluation_overwrites_the_record_of_another(camvid, tmp_path, call, tiny):
    lists = ("a/val.lst", "b/val.lst", "val.lst", "list/camvid/test.lst")
    arguments, folder = random_run(tmp_path, tiny, *lists)
    for place in ("x/best.pt", "y/best.pt", "deep/y/best.pt", "y/best.pth"):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(folder / "best.pt", tmp_path / place)
    shutil.copytree(tmp_path / "data", tmp_path / "other")
    conditions = [
        [],
        *(["DATASET.TEST_SET", name] for name in lists),
        ["DATASET.ROOT", tmp_path / "other"],
        ["DATASET.LABELS", "index", "DATASET.TEST_SET", "a/val.lst", "TEST.PAD", "True"],
        *(["TEST.MODEL_FILE", tmp_path / place] for place in ("x/best.pt", "y/best.pt")),
        *(["TEST.MODEL_FILE", tmp_path / place] for place in ("deep/y/best.pt", "y/best.pth")),
        *(["TEST.SCALES", scales] for scales in ("(0.75,)", "(1.5,)", "(0.75,1.5)")),
        ["TEST.FLIP_TEST", "True"],
        *(["TEST.SLIDE", size] for size in ("(64,48)", "(48,64)")),
        ["TEST.SLIDE", "(64,48)", "TEST.STRIDE", "(32,24)"],
        ["TEST.SHORT_SIDE", 32],
        ["TEST.SHORT_SIDE", 32, "TEST.SIZE_DIVISOR", 32],
        ["TEST.LONG_SIDE", 64],
        ["TEST.PAD", "True"],
    ]
    written = {}
    for overrides in conditions:
        out = call("tools/eval.py", *arguments, *overrides).stdout
        (new,) = [n for n in records(folder) if f"{folder / n}; pictures" in out]
        assert new not in written, (overrides, new)
        written[new] = records(folder)[new]
    assert records(folder) == written  # each as it was when it was written
    names = set(written)
    assert {"eval_val.json", "eval_test.json", "eval_a-val.json", "eval_b-val.json"} < names
    assert {"eval_val_x-best.json", "eval_val_y-best.json", "eval_val_pad.json"} < names
    assert {"eval_val_scales-0.75.json", "eval_val_slide-64-48_stride-32-24.json"} < names
    for overrides in ([], ["DATASET.ROOT", tmp_path / "other"]):  # the same again: no new files
        call("tools/eval.py", *arguments, *overrides)
    assert set(records(folder)) == names
    assert (
        len(list(folder.glob("eval_*.txt"))) == len(list(folder.glob("overlays_*"))) == len(names)
    )


def test_a_file_that_is_no_record_stays(camvid, tmp_path, call, tiny):
    arguments, folder = random_run(tmp_path, tiny)
    for number, text in enumerate(("my notes", "[1, 2]", "{}")):
        (folder / "eval_val.json").write_text(text)
        call("tools/eval.py", *arguments)
        assert ((folder / "eval_val.json").read_text() == text) == (number < 2)  # {} says nothing


@pytest.mark.parametrize(
    ("images", "files", "words"),
    [
        (["a/x.png", "b/y.png"], ["x.png", "y.png"], ""),
        (["a/x.png", "b/x.png", "b/y.png"], ["a/x.png", "b/x.png", "b/y.png"], "folders"),
        (["a/x.png", "a/x.jpg"], ["a/x.png.png", "a/x.jpg.png"], "folders"),
        (["x.png", "X.png"], ["x.png.png", "X.png~2.png"], ""),
    ],
)
@pytest.mark.parametrize("labelled", [True, False])
def test_no_picture_overwrites_another(
    images, files, words, labelled, camvid, tmp_path, call, tiny
):
    lines = []
    for number, name in enumerate(images):
        (camvid / name).parent.mkdir(exist_ok=True)
        cv2.imwrite(str(camvid / name), cv2.imread(str(camvid / f"images/{number}.png")))
        lines.append(f"{name}\tlabels/{number}.png" if labelled else name)
    write_list(tmp_path, lines)
    arguments, folder = random_run(tmp_path, tiny)
    more = ["TEST.SUBMISSION", "True", "TEST.OVERLAYS", "9"]
    out = call("tools/eval.py", *arguments, *more).stdout
    for kind in ("overlays_val", "submission_val"):
        found = [p.relative_to(folder / kind) for p in (folder / kind).rglob("*") if p.is_file()]
        assert sorted(map(str, found)) == sorted(files)
    assert f"{len(files)} submission files in {folder / 'submission_val'}" in out
    assert ("in the folders of the list" in out) == bool(words)


def test_files_for_the_cityscapes_server_are_called_as_its_images(root):
    for name in ("val", "test", "train"):
        entries = read_list(root / f"data/list/cityscapes/{name}.lst")
        files = distinct_files([entry.image for entry in entries], ".png")
        assert files == [Path(entry.image).name for entry in entries]


BAD_VIEWS = {
    "stride alone": (["TEST.STRIDE", "(32,24)"], ["TEST.STRIDE is (32, 24)", "TEST.SLIDE"]),
    "stride too long": (
        ["TEST.SLIDE", "(64,48)", "TEST.STRIDE", "(64,49)"],
        ["TEST.STRIDE is (64, 49)", "TEST.SLIDE, (64, 48)"],
    ),
    "several sizes in a batch": (
        ["TEST.BATCH_SIZE_PER_GPU", "3"],
        ["images/1.png is 32x48", "images/0.png is 64x96", "set TEST.BATCH_SIZE_PER_GPU 1"],
    ),
}


@pytest.mark.parametrize("name", BAD_VIEWS)
def test_bad_views_are_refused_before_anything_is_written(name, camvid, tmp_path, refuses, tiny):
    for kind in ("images", "labels"):
        file = str(camvid / kind / "1.png")
        cv2.imwrite(file, cv2.imread(file, cv2.IMREAD_UNCHANGED)[::2, ::2])
    overrides, words = BAD_VIEWS[name]
    arguments, folder = random_run(tmp_path, tiny)
    refuses(words, "tools/eval.py", *arguments, *overrides)
    assert [path.name for path in folder.iterdir()] == ["best.pt"]
    if "BATCH" in overrides[0]:
        refuses(words, "tools/train.py", *arguments, *overrides)
        assert [path.name for path in folder.iterdir()] == ["best.pt"]
