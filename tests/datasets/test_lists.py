"""List files in all spellings that users write."""

import os
import re

import cv2
import numpy as np
import pytest
import torch
from pictures import check_list

from datasets import (
    DataError,
    EpochBatchSampler,
    EvalTransform,
    SegmentationDataset,
    TrainTransform,
    get_meta,
    make_cache,
    make_loader,
    quick_check,
    read_list,
    shared_images,
)
from datasets.files import find_list


def write_list(tmp_path, content: bytes):
    path = tmp_path / "train.lst"
    path.write_bytes(content)
    return path


def test_lists_of_all_spellings_read_alike(tmp_path):
    spellings = [
        b"i/a.png\tl/a.png\ni/b.png\tl/b.png\n",
        b"i/a.png  l/a.png\ni/b.png l/b.png",
        b"\xef\xbb\xbfi/a.png\tl/a.png\r\ni/b.png \t l/b.png\r\n\r\n",
    ]
    for content in spellings:
        entries = read_list(write_list(tmp_path, content))
        assert entries == [("i/a.png", "l/a.png", 1), ("i/b.png", "l/b.png", 2)]


def test_comments_and_empty_lines_count_as_lines(tmp_path):
    path = write_list(tmp_path, "# train\n\nbilder/straße 1.png\tl/ä.png\n".encode())
    assert read_list(path) == [("bilder/straße 1.png", "l/ä.png", 3)]


def test_a_list_without_labels(tmp_path):
    assert read_list(write_list(tmp_path, b"a.png\nb.png\n"))[1] == ("b.png", None, 2)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"# nothing\n\n", "names no image"),
        (b"a.png x.png\nb.png y.png\na.png x.png\n", ":3: a.png stands already in line 1; a train"),
        (b"a.png x.png\na.png y.png\n", ":2: a.png stands already in line 1, with another label"),
        (b"a b.png c.png\n", ":1: 3 columns; .* TAB"),
        (b"a.png x.png\nb.png\n", ":2: line 1 has a label and this line has none"),
        (b"a.png\nb.png y.png\n", ":2: line 1 has no label and this line has one"),
        (b"a.png x.png\n../b.png y.png\n", r":2: \.\./b.png leaves the dataset's folder"),
        (b"a.png /tmp/x.png\n", ":1: /tmp/x.png leaves"),
        (b"a.png\nb\0.png\n", ":2: a name with a zero byte"),
        (b"\xff\xfe\x00a", "not a text file in UTF-8"),
    ],
)
def test_bad_lists_are_refused_with_their_line(tmp_path, content, words):
    with pytest.raises(DataError, match=f"train.lst.*{words}"):
        read_list(write_list(tmp_path, content))


@pytest.mark.parametrize("order", ["le", "be"])
@pytest.mark.parametrize(("wide", "mark"), [(16, ""), (16, "\ufeff"), (32, "\ufeff")])
def test_lists_of_powershell_are_to_be_saved_as_utf_8(tmp_path, wide, order, mark):
    text = mark + "i/a.png\tl/a.png\r\ni/straße.png\tl/b.png\r\n"
    path = write_list(tmp_path, text.encode(f"utf-{wide}-{order}"))
    with pytest.raises(DataError) as error:
        read_list(path)
    assert str(error.value) == (
        f"{path} is not a text file in UTF-8 but in UTF-{wide}, as PowerShell and editors of "
        "Windows write; save it as UTF-8"
    )


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252", "cp437"])
def test_lists_in_a_code_page_are_to_be_saved_as_utf_8(tmp_path, encoding):
    path = write_list(tmp_path, "i/a.png\tl/a.png\ni/Bäume.png\tl/b.png\n".encode(encoding))
    with pytest.raises(DataError, match=r"train.lst is not a text .* \(.*\); save it as UTF-8$"):
        read_list(path)


def test_lines_end_as_on_any_system(tmp_path):
    for ending in ("\n", "\r\n", "\r"):
        path = write_list(tmp_path, ending.join(("a.png\tx.png", "", "b.png\ty.png")).encode())
        assert read_list(path) == [("a.png", "x.png", 1), ("b.png", "y.png", 3)]


@pytest.mark.parametrize("name", ["images", "lists/", ".", "", "{root}/images", "list/camvid"])
def test_a_folder_in_the_place_of_a_list_is_said_to_be_one(tmp_path, name):
    for folder in ("images", "lists"):
        (tmp_path / folder).mkdir()
    with pytest.raises(FileNotFoundError) as error:
        find_list(tmp_path, name.format(root=tmp_path))
    assert "is a folder, not a list; DATASET.TRAIN_SET and DATASET.TEST_SET" in str(error.value)


def test_the_repository_has_the_lists_that_root_lacks(tmp_path, root):
    assert find_list(tmp_path, "list/camvid/val.lst") == root / "data/list/camvid/val.lst"
    (tmp_path / "list/camvid").mkdir(parents=True)
    own = tmp_path / "list/camvid/val.lst"
    own.write_text("a.png b.png\n")
    assert find_list(tmp_path, "list/camvid/val.lst") == own


def test_a_list_that_is_nowhere_names_both_places(tmp_path, root):
    with pytest.raises(FileNotFoundError) as error:
        find_list(tmp_path, "list/camvid/tran.lst")
    assert str(tmp_path / "list/camvid/tran.lst") in str(error.value)
    assert str(root / "data/list/camvid/tran.lst") in str(error.value)


def test_a_list_that_is_named_by_a_whole_path(tmp_path):
    with pytest.raises(FileNotFoundError, match=rf"^list file {tmp_path}/x.lst does not exist$"):
        find_list(tmp_path, tmp_path / "x.lst")


# spaces and backslashes


def test_a_tab_at_the_end_keeps_the_spaces_of_a_name_without_label(tmp_path):
    for ending in (b"\t\n", b"\t\r\n", b" \t \n"):
        path = write_list(tmp_path, b"my photo 1.png" + ending + b"b.png\n\tc d.png\t\n")
        assert [entry[:2] for entry in read_list(path)] == [
            ("my photo 1.png", None),
            ("b.png", None),
            ("c d.png", None),
        ]
    path = write_list(tmp_path, b"my photo 1.png\tmy label.png\t\n  \tb.png y.png\n")
    assert [entry[:2] for entry in read_list(path)] == [
        ("my photo 1.png", "my label.png"),
        ("b.png", "y.png"),
    ]
    words = r":2: line 1 has no label and .* needs a TAB at the line's end\)$"
    with pytest.raises(DataError, match=words):
        read_list(write_list(tmp_path, b"a.png\nmy photo.png\n"))


def test_names_that_were_cut_at_a_space_are_told_the_tab(open_dataset, folder):
    os.rename(folder / "camvid/images/a.png", folder / "camvid/images/a b.png")
    (folder / "list/test.lst").write_text("images/a b.png\n")
    hint = "there is images/a b.png: a name with spaces needs a TAB at the line's end"
    with pytest.raises(DataError, match=hint):
        quick_check(open_dataset(list_file="list/test.lst"))
    summary = check_list(folder, "list/test.lst", get_meta("camvid"), "index")
    assert hint in summary.problems[0]
    (folder / "list/test.lst").write_text("images/a b.png\t\n")
    assert quick_check(open_dataset(list_file="list/test.lst")) == []
    (folder / "list/test.lst").write_text("images/b.png labels/b.png\t\n")
    hint = "there is images/b.png: the TAB stands between image and label"
    with pytest.raises(DataError, match=hint):
        quick_check(open_dataset(list_file="list/test.lst"))


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("images/p 1.png labels/p 1.png", "4 columns.*; there are images/p 1.png and labels/p 1.png"
         ": put a TAB between them"),
        ("images/p 1.png labels/b.png", "3 columns.*there are images/p 1.png and labels/b.png: "),
        ("images/b.png  labels/p 1.png", "there are images/b.png and labels/p 1.png: put a TAB"),
        ("images/p q 2.png", "3 columns.*there is images/p q 2.png: a name with spaces"),
        ("images/p 1.png", "there is images/p 1.png: a name with spaces needs a TAB at the line's "
         "end, or before its label"),
        ("images/b.png,labels/b.png", "separated by ','; a line is image<TAB>label, with a TAB "
         "between images/b.png and labels/b.png"),
        ("images/b.png, labels/b.png", "separated by ','; .*between images/b.png and labels/b.png"),
        ("images/p 1.png, labels/p 1.png", "separated by ','; .*between images/p 1.png and labels"),
        ("images/b.png;labels/b.png", "separated by ';'"),
        ("images/none.png,labels/none.png", "separated by ','"),
    ],
)  # fmt: skip
def test_a_line_without_tab_is_told_what_it_means(open_dataset, folder, line, words):
    for name in ("images/p 1.png", "labels/p 1.png", "images/p q 2.png"):
        os.link(folder / f"camvid/{name[:6]}/a.png", folder / "camvid" / name)
    (folder / "list/test.lst").write_text(line + "\n")
    place = f"{folder}/list/test.lst:1: "
    with pytest.raises(DataError, match=f"^{place}.*{words}"):
        quick_check(open_dataset(list_file="list/test.lst"))
    problem = check_list(folder, "list/test.lst", get_meta("camvid"), "index").problems[0]
    assert re.match(f"{place}.*{words}", problem)


def test_names_with_commas_are_names(open_dataset, folder):
    for name in ("images/x.v1,2.png", "images/x.png,y.png"):
        os.link(folder / "camvid/images/a.png", folder / "camvid" / name)
    text = "images/x.v1,2.png labels/a.png\nimages/x.png,y.png\tlabels/b.png\n"
    (folder / "list/test.lst").write_text(text)
    dataset = open_dataset(list_file="list/test.lst")
    assert dataset.name(0) == "images/x.v1,2.png" and dataset.name(1) == "images/x.png,y.png"
    assert quick_check(dataset) == []


# spellings of one path

SPELLINGS = ("./img/v.png", "img//v.png", "img/./v.png", "img/../img/v.png", ".\\img\\v.png")


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_spellings_of_a_path_are_one_path(tmp_path, spelling):
    path = write_list(tmp_path, f"{spelling}\tl/../l//v.png\n".encode())
    assert read_list(path) == [("img/v.png", "l/v.png", 1)]
    for first, second in (("img/v.png", spelling), (spelling, "img/v.png")):
        path = write_list(tmp_path, f"{first}\tl/v.png\n{second}\tl/v.png\n".encode())
        with pytest.raises(DataError, match=r":2: img/v.png stands already in line 1; a training"):
            read_list(path)
        assert len(read_list(path, repeats=True)) == 2


@pytest.mark.parametrize("name", ["../v.png", "a/../../v.png", "./../v.png", "..", "a/b/../../.."])
def test_paths_that_leave_the_folder_stay_refused(tmp_path, name):
    with pytest.raises(DataError, match=r":1: .*\.\..* leaves the dataset's folder;"):
        read_list(write_list(tmp_path, f"{name}\tl.png\n".encode()))


def test_spellings_hide_neither_a_leak_nor_make_a_label_two_images(open_dataset, folder):
    text = (folder / "list/train.lst").read_text()
    (folder / "list/over.lst").write_text(text + text.replace("images/", "./images//"))
    (folder / "list/val.lst").write_text("images/../images/b.png\tlabels/b.png\n")
    repeated = check_list(folder, "list/over.lst", get_meta("camvid"), "index", repeats=True)
    assert repeated.problems == [] and not any("is the label of" in n for n in repeated.notes)
    train, val = (open_dataset(list_file=f"list/{name}.lst") for name in ("train", "val"))
    assert quick_check(val) == []
    assert shared_images(train, val) == [
        f"1 of 1 images of {folder}/list/val.lst are in {folder}/list/train.lst too, images/b.png "
        "for one; a score on images that were trained on says nothing about others"
    ]
    (folder / "list/val.lst").write_text("labels/b.png\tlabels/b.png\n")
    assert shared_images(train, open_dataset(list_file="list/val.lst")) == []


def test_a_root_that_is_not_there_is_one_sentence(tmp_path):
    meta = get_meta("camvid")
    for name in ("train.lst", "list/camvid/val.lst"):  # the second is in the repository
        with pytest.raises((FileNotFoundError, DataError)) as error:
            quick_check(SegmentationDataset(tmp_path / "no", name, meta, transform=EvalTransform()))
        assert str(error.value) == f"DATASET.ROOT {tmp_path}/no does not exist"
    (tmp_path / "file").write_text("")
    with pytest.raises(FileNotFoundError, match=r"^DATASET.ROOT .*/file is not a folder$"):
        SegmentationDataset(tmp_path / "file", "train.lst", meta, transform=EvalTransform())


def test_backslashes_separate_folders(open_dataset, folder):
    text = "images\\a.png\tlabels\\a.png\r\nimages/b.png labels\\b.png\r\n"
    (folder / "list/win.lst").write_bytes(text.encode())
    dataset = open_dataset(list_file="list/win.lst")
    assert quick_check(dataset) == []
    assert [e[:2] for e in dataset.entries] == [
        ("images/a.png", "labels/a.png"),
        ("images/b.png", "labels/b.png"),
    ]
    assert check_list(folder, "list/win.lst", get_meta("camvid"), "index").problems == []


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b"..\\b.png\ty.png", r"\.\./b.png leaves the dataset's folder"),
        (b"a\\..\\..\\b.png", "leaves the dataset's folder"),
        (b"C:\\data\\b.png", r"C:/data/b.png leaves .* \(it is an absolute path\)"),
        (b"\\\\server\\share\\b.png", "leaves .* \\(it is an absolute path\\)"),
        (b"x\\a.png\nx/a.png", ":2: x/a.png stands already in line 1"),
    ],
)
def test_backslashes_hide_nothing(tmp_path, line, words):
    with pytest.raises(DataError, match=words):
        read_list(write_list(tmp_path, line + b"\n"))


@pytest.mark.skipif(os.sep == "\\", reason="a name cannot hold a backslash there")
def test_a_file_with_a_backslash_in_its_name_is_meant(open_dataset, folder):
    os.rename(folder / "camvid/images/a.png", folder / "camvid/images/a\\1.png")
    (folder / "list/odd.lst").write_text("images/a\\1.png\tlabels/a.png\n")
    dataset = open_dataset(list_file="list/odd.lst")
    assert dataset.name(0) == "images/a\\1.png" and quick_check(dataset) == []


# lines that are repeated on purpose


@pytest.fixture
def oversampled(folder):
    """train.lst names b three times."""
    text = (folder / "list/train.lst").read_text()
    line = text.splitlines(keepends=True)[1]
    (folder / "list/over.lst").write_text(text + 2 * line)
    return "list/over.lst"


def test_repeated_lines_need_the_setting(open_dataset, oversampled):
    words = r":4: images/b.png stands .* line 2; .* with DATASET.REPEATED_LINES True"
    with pytest.raises(DataError, match=words):
        open_dataset(list_file=oversampled)
    dataset = open_dataset(list_file=oversampled, repeats=True)
    assert quick_check(dataset) == []
    assert [dataset.name(i)[7] for i in range(len(dataset))] == ["a", "b", "c", "b", "b"]
    assert [entry.line for entry in dataset.entries] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("kind", ["ram", "disk"])
def test_repeated_lines_share_a_place_in_the_cache(open_dataset, oversampled, folder, kind):
    transform = TrainTransform((12, 16))
    plain = open_dataset(list_file=oversampled, repeats=True, transform=transform)
    cached = plain.with_cache(make_cache(kind, len(plain), 0.01, folder / "cache"))
    batches = []
    for dataset in (plain, cached, cached):
        sampler = EpochBatchSampler(5, 5, seed=1)
        batches.append(next(iter(make_loader(dataset, batch_sampler=sampler))))
    for batch in batches[1:]:
        assert batch["name"] == batches[0]["name"]
        assert torch.equal(batch["image"], batches[0]["image"])
        assert torch.equal(batch["label"], batches[0]["label"])
    assert sorted(batches[0]["name"]).count("images/b.png") == 3
    assert cached.cache.usage()[0] == 3 and plain.cache is None


def test_the_checker_counts_repeated_lines_as_training_does(folder, oversampled):
    meta = get_meta("camvid")
    refused = check_list(folder, oversampled, meta, "index")
    assert len(refused.problems) == 2 and "REPEATED_LINES" in refused.problems[0]
    summary = check_list(folder, oversampled, meta, "index", repeats=True)
    assert summary.problems == [] and not any("is the label of" in note for note in summary.notes)
    labels = {name: cv2.imread(f"{folder}/camvid/labels/{name}.png", 0) for name in "abc"}
    sky = sum(np.count_nonzero(labels[name] == 0) for name in "abcbb")
    assert summary.pixels[meta.class_names.index("sky")] == sky
