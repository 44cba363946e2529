import json
import re
from pathlib import Path

import cv2
import numpy as np
import pytest
from pictures import check_list, saved

from datasets import get_meta

OWN = "configs/own/rtlinearformer_slim_own.yaml"
CONFIG = "configs/camvid/rtlinearformer_slim_camvid_360x480.yaml"


@pytest.fixture
def check(run, tmp_path):
    """Runs the checker on index labels below `tmp_path`; returns what it printed."""

    def check_lists(*overrides: object, status: int = 0, workers: int = 0) -> str:
        sets = ("DATASET.TRAIN_SET", "train.lst", "DATASET.TEST_SET", "val.lst")
        arguments = ("--cfg", CONFIG, "DATASET.ROOT", tmp_path, *sets, "WORKERS", workers)
        arguments += ("OUTPUT_DIR", tmp_path / "out")
        done = run("tools/check_data.py", *arguments, *overrides, status=status)
        assert "Traceback" not in done.stderr
        return done.stdout if status < 2 else done.stderr

    return check_lists


def write(root: Path, lists: dict[str, list[str]]) -> None:
    """Sound pairs of 24x32 for every name: class `position` on the left, void on the right."""
    for part in ("images", "labels"):
        (root / "camvid" / part).mkdir(parents=True, exist_ok=True)
    for file, names in lists.items():
        for position, name in enumerate(names):
            label = np.full((24, 32), position % 11, np.uint8)
            label[:, 16:] = 11
            cv2.imwrite(str(root / f"camvid/images/{name}.png"), cv2.merge([label * 20] * 3))
            cv2.imwrite(str(root / f"camvid/labels/{name}.png"), label)
        lines = [f"images/{name}.png\tlabels/{name}.png\n" for name in names]
        (root / file).write_text("".join(lines))


def test_sound_lists_pass_with_a_row_per_class(check, tmp_path):
    names = [f"{i:02d}" for i in range(11)]
    write(tmp_path, {"train.lst": names, "val.lst": names[:1]})
    out = check(workers=2)
    assert re.search(r"train.lst: 11 pairs; height x width: 24x32 \(11\)", out)
    assert re.search(r"^bicyclist +4\.545 +1$", out, re.M)
    assert re.search(r"^\(ignored\) +50\.000 +11$", out, re.M)
    lists = f"{tmp_path}/val.lst are in {tmp_path}/train.lst too, images/00.png for one"
    assert f"note: 1 of 1 images of {lists}; a score on images that were trained on says" in out
    assert "val.lst: no pixel of bicyclist, building" in out
    assert out.endswith("12 entries checked, no problem\n")


def test_every_damage_is_reported_with_its_line(check, tmp_path):
    names = ["cut", "empty", "gone", "jpeg", "rgb", "size", "sound", "value", "image", "twice"]
    write(tmp_path, {"train.lst": names, "val.lst": ["fine"]})
    folder = tmp_path / "camvid"

    def spoil(file: str, content: bytes) -> None:
        (folder / file).write_bytes(content)

    label = np.full((24, 32), 3, np.uint8)
    png = cv2.imencode(".png", label)[1].tobytes()
    spoil("labels/cut.png", png[:-20])
    spoil("labels/empty.png", b"")
    (folder / "labels/gone.png").unlink()
    spoil("labels/jpeg.png", cv2.imencode(".jpg", label)[1].tobytes())
    spoil("labels/rgb.png", cv2.imencode(".png", cv2.merge([label] * 3))[1].tobytes())
    spoil("labels/size.png", cv2.imencode(".png", label[:12])[1].tobytes())
    spoil("labels/value.png", cv2.imencode(".png", label + 30)[1].tobytes())
    spoil("images/image.png", png[:40])
    spoil("images/twice.png", b"text")
    (folder / "labels/twice.png").unlink()
    out = check(status=1, workers=2)
    problems = [line for line in out.splitlines() if line.startswith("problem: ")]
    expected = {
        1: "labels/cut.png is a truncated PNG",
        2: r"labels/empty.png is empty \(0 bytes\)",
        3: "labels/gone.png does not exist",
        4: "labels/jpeg.png is a JPEG",
        5: "labels/rgb.png has 3 channels .* DATASET.LABELS is index, accepted: color, index",
        6: "labels/size.png is 12x32 but its image images/size.png is 24x32",
        8: r"label value 33 in labels/value.png is neither a class of camvid \(0..10\) nor ignore",
        9: "images/image.png is a truncated PNG",
        10: "images/twice.png is a text file; photographs are JPEG",
    }
    patterns = [f"train.lst:{line}: {words}" for line, words in expected.items()]
    patterns.append("train.lst:10: labels/twice.png does not exist")
    for pattern, problem in zip(patterns, problems, strict=True):
        assert re.search(pattern, problem), f"{pattern}\n{problem}"
    assert out.endswith("11 entries checked, 10 problems\n")


def test_labels_read_in_the_wrong_encoding_are_a_problem(check, tmp_path):
    write(tmp_path, {"train.lst": ["a"], "val.lst": ["b"]})
    for name in "ab":
        picture = np.full((24, 32, 3), (1, 2, 3), np.uint8)
        cv2.imwrite(str(tmp_path / f"camvid/labels/{name}.png"), picture)
    out = check("DATASET.LABELS", "color", status=1)
    assert re.search(r"problem: .*val.lst: none of 1 labels has a pixel of a class of camvid", out)
    assert re.search(r"suspicious: .*train.lst:1: labels/a.png is all ignored", out)


def test_bad_calls_exit_with_2(check, tmp_path):
    write(tmp_path, {"train.lst": ["a"], "val.lst": ["b"]})
    assert re.search(
        r"error: list file no.lst found", check("DATASET.TEST_SET", "no.lst", status=2)
    )
    words = r"error: DATASET.LABELS is 'rgb', which camvid does not have"
    assert re.search(words, check("DATASET.LABELS", "rgb", status=2))


def test_lists_of_equal_names_have_sheets_of_their_own(check, tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
    write(tmp_path, {"a/all.lst": ["0", "1"], "b/all.lst": ["2"]})
    check("DATASET.TRAIN_SET", "a/all.lst", "DATASET.TEST_SET", "b/all.lst")
    out = tmp_path / "out/camvid/check_rtlinearformer_slim_camvid_360x480"
    sheets = ["a/sheet_all.png", "b/sheet_all.png"]
    assert json.loads((out / "report.json").read_text())["sheets"] == sheets
    assert sorted(p.relative_to(out).as_posix() for p in out.rglob("*.png")) == sheets
    assert len({(out / sheet).read_bytes() for sheet in sheets}) == 2


def test_a_value_fault_hides_no_other_fault_of_its_line(check, tmp_path):
    write(tmp_path, {"train.lst": ["value", "mode", "deep"], "val.lst": ["fine"]})
    label = np.full((12, 32), 33, np.uint8)
    turned = saved(label, "PNG", orientation=3)
    (tmp_path / "camvid/labels/value.png").write_bytes(turned)
    (tmp_path / "camvid/labels/mode.png").write_bytes(saved(cv2.merge([label] * 3), "PNG"))
    (tmp_path / "camvid/labels/deep.png").write_bytes(saved(label.astype(np.uint16), "PNG"))
    out = check(status=1)
    for line, name, fault in ((1, "value", "label value 33 in"), (2, "mode", "has 3 channels"),
                              (3, "deep", "has 16 bits")):  # fmt: skip
        place = f"problem: {tmp_path}/train.lst:{line}: "
        assert re.search(rf"{place}.*{fault}", out)
        assert f"{place}labels/{name}.png is 12x32 but its image images/{name}.png is 24x32" in out
    assert "train.lst:1: labels/value.png carries EXIF orientation 3" in out


def test_suspicions_of_every_kind_are_shown(check, tmp_path):
    names = [f"{i:02d}" for i in range(40)]
    write(tmp_path, {"train.lst": names, "val.lst": ["fine"]})  # 40 labels of one class
    picture = np.random.default_rng(0).integers(0, 256, (24, 32, 4), dtype=np.uint8)
    (tmp_path / "camvid/images/38.png").write_bytes(saved(picture, "PNG"))
    (tmp_path / "camvid/images/39.png").write_bytes(saved(picture[..., :3], "PNG", orientation=3))
    out = check()
    shown = [line for line in out.splitlines() if line.startswith("suspicious: ")]
    for words in (
        "images/38.png has 4 bands",
        "images/39.png carries EXIF",
        "labels/00.png is all",
    ):
        assert sum(words in line for line in shown) == 1, words
    assert any(line.endswith(" more, all in report.json") for line in shown)


def test_the_sheet_has_one_of_each_kind_first(tmp_path):
    names = [f"{i:02d}" for i in range(40)]
    write(tmp_path, {"train.lst": names, "val.lst": ["fine"]})  # 40 labels of one class
    picture = np.random.default_rng(0).integers(0, 256, (24, 32, 4), dtype=np.uint8)
    images, labels = tmp_path / "camvid/images", tmp_path / "camvid/labels"
    (images / "35.png").write_bytes(saved(picture[:12, :, :3], "PNG"))  # a problem
    (labels / "36.png").write_bytes(saved(np.full((24, 32), 11, np.uint8), "PNG"))
    (images / "37.png").write_bytes(saved(picture[:, :, 0] // 255, "PNG", orientation=3))
    (images / "38.png").write_bytes(saved(picture, "PNG"))
    (images / "39.png").write_bytes(saved(picture[..., :3], "PNG", orientation=3))
    summary = check_list(tmp_path, "train.lst", get_meta("camvid"), "index")
    shown = summary.suspects_of_each_kind_first()
    assert sorted(shown[:5]) == [0, 35, 36, 37, 38] and shown[5:8] == [1, 2, 3]
    assert sorted(shown) == list(range(40)) == list(summary.suspects)


def test_bad_lines_are_counted(check, tmp_path):
    write(tmp_path, {"train.lst": ["a", "b"], "val.lst": ["c"]})
    text = (tmp_path / "train.lst").read_text()
    (tmp_path / "train.lst").write_text(f"# pairs\n{text}\n../x.png\ty.png\na b c\n")
    out = check(status=1)
    assert f"{tmp_path}/train.lst: 2 pairs of 4 lines; height" in out
    assert f"{tmp_path}/val.lst: 1 pairs; height" in out


def test_a_list_without_labels_is_no_list_to_train_on(check, tmp_path):
    write(tmp_path, {"train.lst": ["a", "b"], "val.lst": ["c"]})
    for name in ("train.lst", "val.lst"):
        lines = (tmp_path / name).read_text().splitlines()
        (tmp_path / name).write_text("\n".join(line.split("\t")[0] for line in lines))
    out = check(status=1)
    assert "problem: train.lst names no labels; training needs image<TAB>label" in out
    assert "note: val.lst names no labels; evaluation predicts it" in out
    assert out.endswith("3 entries checked, 1 problem\n")


def test_a_root_that_is_not_there_is_one_sentence(call, tmp_path):
    cityscapes = "configs/cityscapes/pidnet_s_cityscapes.yaml"  # its lists are in the repository
    for config in (cityscapes, OWN):
        more = ("DATASET.DATASET", own(tmp_path, "")) if config == OWN else ()
        root = ("DATASET.ROOT", tmp_path / "no", "OUTPUT_DIR", tmp_path / "out")
        done = call("tools/check_data.py", "--cfg", config, *root, *more, status=2)
        assert done.stderr == f"error: DATASET.ROOT {tmp_path}/no does not exist\n"
        assert done.stdout == "" and not (tmp_path / "out").exists()
    root = ("DATASET.ROOT", tmp_path, "OUTPUT_DIR", tmp_path / "out")
    done = call("tools/check_data.py", "--cfg", cityscapes, *root, status=2)
    assert (
        f"error: {tmp_path}/cityscapes is not a folder; DATASET.ROOT is {tmp_path}" in done.stderr
    )


def own(folder: Path, text: str) -> Path:
    file = folder / "plants.yaml"
    file.write_text("class_names: [soil, leaf, stem]\n" + text)
    return file


def test_weights_that_are_not_used_are_told(call, tmp_path):
    write(tmp_path, {"train.lst": ["a"], "val.lst": ["b"]})
    (tmp_path / "camvid").rename(tmp_path / "plants")
    for name in "ab":
        label = np.arange(24 * 32, dtype=np.uint16).reshape(24, 32) % 3
        cv2.imwrite(str(tmp_path / f"plants/labels/{name}.png"), label.astype(np.uint8))
    for used in (True, False):
        file = own(tmp_path, "class_weights: [1e-1, 5, 5]\n")
        data = ("DATASET.DATASET", file, "DATASET.ROOT", tmp_path, "OUTPUT_DIR", tmp_path / "out")
        data += ("DATASET.CLASS_WEIGHTS", used, "WORKERS", 0)
        out = call("tools/check_data.py", "--cfg", OWN, *data).stdout
        assert (f"note: class_weights of {file} are not used, since" in out) == (not used)


def test_drawn_scenes_need_no_check(run):
    config = "configs/synthetic/rtlinearformer_slim_synthetic.yaml"
    assert "there are no files" in run("tools/check_data.py", "--cfg", config).stdout


def test_real_camvid_is_sound(run, shared, tmp_path):
    out = run(
        "tools/check_data.py",
        "--cfg",
        CONFIG,
        "DATASET.ROOT",
        shared,
        "WORKERS",
        2,
        "OUTPUT_DIR",
        tmp_path,
    ).stdout
    assert out.endswith("468 entries checked, no problem\n")
    assert re.search(r"^road +31\.658 +367$", out, re.M)


def test_a_folder_that_cannot_be_written_is_refused_first(refuses, tmp_path):
    path = tmp_path / "file"
    path.write_text("")
    config = "configs/camvid/pidnet_s_camvid_360x480.yaml"
    root = tmp_path / "data"
    (root / "list/camvid").mkdir(parents=True)
    (root / "camvid").mkdir()
    for name in ("train", "val"):
        (root / f"list/camvid/{name}.lst").write_text(f"images/{name}.png\tlabels/{name}.png\n")
    words = ["--out", str(path), "must be a folder that can be written"]
    refuses(words, "tools/check_data.py", "--cfg", config, "--out", path, "DATASET.ROOT", root)
    words = ["the report's folder (under OUTPUT_DIR) ", str(path), "must be a folder that can be"]
    data = ("DATASET.ROOT", root, "OUTPUT_DIR", path)
    assert "--out" not in refuses(words, "tools/check_data.py", "--cfg", config, *data)
