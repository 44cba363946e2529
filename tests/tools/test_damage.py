"""Kinds of damage that real datasets have: each gets its sentence, or is read where it is none."""

import importlib
import json
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path

import cv2
import damage as d
import numpy as np
import pytest
from damage import LIST, Set

from datasets import EvalTransform, SegmentationDataset, get_meta, quick_check

CONFIG = "configs/camvid/rtlinearformer_slim_camvid_360x480.yaml"  # index labels

REFUSED = [
    (d.missing, 2, r"labels/n2\.png does not exist"),
    (d.swapped_columns, 2, r"labels/n2\.png holds label values and images/n2\.jpg a photograph: "
     r"image and label are swapped; a line is image<TAB>label"),
    (d.swapped_labels, 2, r"labels/n3\.png belongs by its name to images/n3\.jpg of line 3, not to "
     r"images/n2\.jpg"),
    (d.wrong_size, 2, r"labels/n2\.png is 16x32 but its image images/n2\.jpg is 24x32"),
    (d.bits_16, 2, r"labels/n2\.png has 16 bits per value; labels have 8"),
    (d.alpha, 2, r"labels/n2\.png has 4 channels \(colours and alpha\) where one channel"),
    (d.gray_alpha, 2, r"labels/n2\.png has an alpha channel; save it as one channel"),
    (d.jpeg, 2, r"labels/n2\.png is a JPEG, which does not keep label values"),
    (d.avif, 2, r"labels/n2\.png is an AVIF, which does not keep label values; labels must"),
    (d.lossy_webp, 2, r"labels/n2\.png is a lossy or animated WebP, which does not keep"),
    (d.polygons, 2, r"labels/n2\.png is JSON; labels must be PNGs of 8 bits"),
    (d.array, 2, r"labels/n2\.png is a NumPy array \(\.npy\); labels must be PNGs of 8 bits"),
    (d.float_label, 2, r"labels/n2\.png has floating-point values; labels are whole numbers of 8"),
    (d.float_image, 2, r"images/n2\.jpg has floating-point values; a photograph has 1, 3 or"),
    (d.many_bands, 2, r"images/n2\.jpg has 7 bands; a photograph has 1, 3 or 4 bands of 8 or"),
    (d.gigapixel, 2, r"images/n2\.jpg has 40000x40000 = 1600000000 pixels, more than"),
    (d.out_of_range, 2, r"label value 33 in labels/n2\.png is neither a class of camvid \(0\.\.10\)"
     r" nor ignore \(11, 255\)"),
    (d.empty_list, None, r"train\.lst names no image; lines are image<TAB>label"),
    (d.duplicate, 3, r"images/n2\.jpg stands already in line 2"),
    (d.spaces_without_tab, 2, r"6 columns; .* \(names with spaces need the TAB, at the"),
    (d.unicode_other_form, 2, "images/cafe\u0301\\.jpg does not exist.*; there is caf\u00e9\\.jpg "
     r"\(other Unicode code points\)"),
    (d.zero_bytes, 2, r"images/n2\.jpg is empty \(0 bytes\)"),
    (d.truncated, 2, r"images/n2\.jpg is a truncated JPEG"),
    (d.truncated_label, 2, r"labels/n2\.png is a truncated PNG"),
    (d.symlink_loop, 2, r"labels/n2\.png is a symbolic link that leads back to itself"),
    (d.dangling_link, 2, r"labels/n2\.png is a symbolic link to elsewhere\.png, which does not "),
    (d.folder, 2, r"labels/n2\.png is a folder, not a file"),
    (d.other_case, 2, r"images/n2\.jpg does not exist.*; there is n2\.JPG \(upper and lower case "),
    (d.outside, 2, r"\.\./elsewhere/n2\.jpg leaves the dataset's folder"),
    (d.outside_absolute, 2, r".*/camvid/images/n2\.jpg leaves the dataset's folder \(it is an abs"),
]  # fmt: skip
ACCEPTED = [
    (d.palette, {}),
    (d.image_alpha, {}),
    (d.unchanged, {"ending": "\r\n"}),
    (d.unchanged, {"before": b"\xef\xbb\xbf"}),
    (d.unchanged, {"before": b"\xef\xbb\xbf", "ending": "\r\n\r\n"}),
    (d.spaces, {}),
    (d.backslashes, {}),
    (d.unicode_names, {}),
    (d.other_case_in_list, {}),
]


@pytest.fixture
def check(root, tmp_path, monkeypatch, capsys) -> Callable[..., tuple[int, str]]:
    """Runs the checker in this process; returns status and output."""
    monkeypatch.chdir(root)
    tool = importlib.import_module("check_data")

    def check_lists(workers: int = 0, more: str = "") -> tuple[int, str]:
        arguments = f"--cfg {CONFIG} --workers {workers} --out {tmp_path / 'report'} DATASET.ROOT "
        arguments += f"{tmp_path} DATASET.TRAIN_SET {LIST} DATASET.TEST_SET val.lst {more}"
        monkeypatch.setattr(sys, "argv", ["check_data.py", *arguments.split()])
        status = tool.main()
        return status, capsys.readouterr().out

    return check_lists


def train_check(root: Path) -> None:
    """What training does before it starts."""
    quick_check(
        SegmentationDataset(root, LIST, get_meta("camvid"), "index", transform=EvalTransform())
    )


@pytest.mark.parametrize(
    ("damage", "line", "words"), REFUSED, ids=lambda v: getattr(v, "__name__", "")
)
def test_damage_gets_its_sentence(check, tmp_path, damage, line, words):
    data = Set(tmp_path)
    damage(data)
    data.write_list()
    status, out = check()
    assert status == 1
    problems = [text for text in out.splitlines() if text.startswith("problem: ")]
    where = f"{tmp_path}/{LIST}" + (f":{line}: " if line else " ")
    sentence = re.escape(where) + words if line else words
    assert re.search(sentence, problems[0]), out
    assert len(problems) == (2 if damage in (d.swapped_labels, d.unicode_other_form) else 1), out
    # The other pairs were read all the same, and the report says so too.
    report = json.loads((tmp_path / "report/report.json").read_text())
    assert report["problems"] == len(problems)
    assert [f"problem: {text}" for text in report["lists"][0]["problems"]] == problems
    sound = {d.missing: 4, d.duplicate: 4, d.swapped_labels: 4}.get(damage, 3)
    assert sum(size["images"] for size in report["lists"][0]["sizes"]) >= (sound if line else 0)
    assert report["lists"][1]["problems"] == []
    # Training refuses as well; what only names tell is for the checker alone.
    if damage is not d.swapped_labels:
        with pytest.raises(ValueError, match=r"n2|caf|names no image|columns"):
            train_check(tmp_path)


@pytest.mark.parametrize(
    ("change", "how"), ACCEPTED, ids=[*(f"{c.__name__}-{h}" for c, h in ACCEPTED)]
)
def test_what_is_no_damage_is_read(check, tmp_path, change, how):
    data = Set(tmp_path)
    change(data)
    data.write_list(**how)
    status, out = check()
    assert status == 0, out
    assert f"{tmp_path}/{LIST}: 4 pairs" in out and "suspicious" not in out
    train_check(tmp_path)


def test_repeated_lines_of_the_training_list_are_no_damage_where_they_are_allowed(check, tmp_path):
    data = Set(tmp_path)
    d.duplicate(data)
    data.write_list()
    status, out = check(more="DATASET.REPEATED_LINES True")
    assert status == 0 and f"{tmp_path}/{LIST}: 5 pairs" in out
    lines = (tmp_path / "val.lst").read_text()
    (tmp_path / "val.lst").write_text(2 * lines)
    status, out = check(more="DATASET.REPEATED_LINES True")
    assert status == 1 and "val.lst:2: images/v.jpg stands already in line 1" in out


def test_all_damage_at_once_is_all_reported(check, tmp_path):
    data = Set(tmp_path)
    rng = np.random.default_rng(5)
    data.lines, wanted = [], []
    for number in range(60):
        image, label = f"images/p{number:02d}.jpg", f"labels/p{number:02d}.png"
        data.write_pair(image, label, rng)
        data.lines.append(f"{image}\t{label}")
        if number % 3 == 0:
            data.write(label, data.path(label).read_bytes()[:-9])
            wanted.append(f"{label} is a truncated PNG")
        elif number % 3 == 1:
            data.path(image).unlink()
            wanted.append(f"{image} does not exist")
    data.lines[5:5] = ["../x.jpg\ty.png", "only_an_image.jpg"]
    data.write_list()
    status, out = check(workers=2)
    problems = [text for text in out.splitlines() if text.startswith("problem: ")]
    assert status == 1 and len(problems) == len(wanted) + 2
    for words in (*wanted, "../x.jpg leaves", "has a label and this line has none"):
        assert sum(words in problem for problem in problems) == 1, words


def test_suspicious_pairs_are_named_and_drawn(check, tmp_path):
    data = Set(tmp_path)
    rng = np.random.default_rng(5)
    for number in range(30):
        name = f"p{number:02d}"
        data.write_pair(f"images/{name}.jpg", f"labels/{name}.png", rng)
        data.lines.append(f"images/{name}.jpg\tlabels/{name}.png")
    for name, value in (("n1", 3), ("n2", 11)):
        flat = np.full((24, 32), value, np.uint8)
        data.write(f"labels/{name}.png", cv2.imencode(".png", flat)[1].tobytes())
    gray = np.full((24, 32, 3), 7, np.uint8)
    data.write("images/n3.jpg", cv2.imencode(".png", gray)[1].tobytes())
    wide = cv2.imencode(".png", np.zeros((24, 200), np.uint8))[1].tobytes()
    data.write("labels/n4.png", wide)
    picture = rng.integers(0, 256, (24, 200, 3), dtype=np.uint8)
    data.write("images/n4.jpg", cv2.imencode(".png", picture)[1].tobytes())
    data.write_list()
    status, out = check()
    assert status == 0
    start = f"suspicious: {tmp_path}/{LIST}"
    assert f"{start}:1: labels/n1.png is all road\n" in out
    assert f"{start}:2: labels/n2.png is all ignored\n" in out
    assert f"{start}:3: images/n3.jpg is of a single colour\n" in out
    assert f"{start}:4: labels/n4.png is all sky\n" in out
    assert f"{start}:4: images/n4.jpg is 24x200 (height x width); most are 24x32\n" in out
    sheet = cv2.imread(str(tmp_path / "report/sheet_train.png"))[..., ::-1]
    marked = cv2.inRange(sheet, (200, 30, 30), (200, 30, 30))
    count, _, boxes, _ = cv2.connectedComponentsWithStats(marked)
    frames = [box for box in boxes[1:count] if box[3] > 50]
    assert len(frames) == 4 and len({tuple(box[2:4]) for box in frames}) == 1
    report = json.loads((tmp_path / "report/report.json").read_text())
    assert report["suspicions"] == 5
    shares = [row["share"] for row in report["lists"][0]["classes"]]
    assert sum(shares) == pytest.approx(1) and len(shares) == 12


def test_an_entry_over_which_a_process_dies_is_named(tmp_path):
    from datasets.checking import CheckedList, examine_all

    data = Set(tmp_path)
    data.write_list()

    class Deadly(CheckedList):
        def load_image(self, index: int) -> np.ndarray:
            if index == 1:
                os._exit(9)
            return super().load_image(index)

    if sys.platform != "linux":
        pytest.skip("a class of a test reaches other processes by fork only")
    checked = Deadly(tmp_path, LIST, get_meta("camvid"), "index")
    findings = list(examine_all(checked, workers=2))
    assert [finding.index for finding in findings] == [0, 1, 2, 3]
    assert findings[1].problems == [
        f"{tmp_path}/{LIST}:2: a process died while it read images/n2.jpg and labels/n2.png"
    ]
    assert not findings[0].problems and not findings[2].problems and not findings[3].problems
