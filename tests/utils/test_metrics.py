"""The confusion matrix: published numbers, exact counts, refusals, sums over processes."""

import json
import math

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
import torch.nn.functional as F

from utils.metrics import ConfusionMatrix


def _matrix(counts, names=None) -> ConfusionMatrix:
    metric = ConfusionMatrix(len(counts), names)
    metric.matrix += torch.tensor(counts)
    return metric


@pytest.mark.parametrize("absent", [False, True])
def test_published_numbers(shared, absent):
    results = json.loads((shared / "parity/losses_pidnet.json").read_text())["results"]
    reference = results["metric_absent_classes" if absent else "metric_logits_i"]
    with np.load(shared / "parity/losses_pidnet.npz") as arrays:
        logits, label = torch.from_numpy(arrays["logits_i"]), torch.from_numpy(arrays["label"])
        expected = arrays["confusion_matrix_absent" if absent else "confusion_matrix"]
    logits = F.interpolate(logits, size=(128, 256), mode="bilinear", align_corners=True)
    if absent:
        label[(label == 16) | (label == 5)] = 255
        logits[:, 16] = -10000
    metric = ConfusionMatrix(19)
    metric.update(logits[:1], label[:1])
    metric.update(logits[1:].argmax(1), label[1:].long())
    assert np.array_equal(metric.matrix.numpy(), expected)
    overall = metric.overall()
    official_mean = next(v for k, v in reference.items() if k.startswith("mean_IoU"))
    assert overall["mIoU_all"] == pytest.approx(official_mean, abs=1e-12)
    assert overall["pixel_accuracy"] == pytest.approx(reference["pixel_acc"], abs=1e-12)
    assert overall["mean_accuracy_all"] == pytest.approx(reference["mean_acc"], abs=1e-12)
    iou = metric.per_class()["IoU"]
    assert np.nan_to_num(iou) == pytest.approx(np.array(reference["IoU"]), abs=1e-12)
    if absent:
        present = reference["mean_over_classes_present_in_union"]
        assert overall["mIoU"] == pytest.approx(present, abs=1e-12)
        assert metric.absent() == ["16"] and math.isnan(iou[16]) and iou[5] == 0


def test_scores_by_hand():
    scores = _matrix([[6, 2, 0], [1, 3, 0], [0, 0, 0]])
    per_class, overall = scores.per_class(), scores.overall()
    assert per_class["IoU"][:2] == pytest.approx([6 / 9, 3 / 6])
    assert per_class["precision"][:2] == pytest.approx([6 / 7, 3 / 5])
    assert per_class["recall"][:2] == pytest.approx([6 / 8, 3 / 4])
    assert per_class["Dice"][:2] == pytest.approx([12 / 15, 6 / 9])
    assert all(math.isnan(column[2]) for column in per_class.values())
    assert overall["mIoU"] == pytest.approx((6 / 9 + 3 / 6) / 2)
    assert overall["mIoU_all"] == pytest.approx((6 / 9 + 3 / 6) / 3)
    assert overall["pixel_accuracy"] == pytest.approx(9 / 12)
    assert overall["mean_accuracy"] == pytest.approx(0.75)
    assert overall["mean_dice"] == pytest.approx((12 / 15 + 6 / 9) / 2)
    chance = (8 * 7 + 4 * 5) / 144
    assert overall["kappa"] == pytest.approx((0.75 - chance) / (1 - chance))


def test_class_predicted_but_never_true_counts_in_the_mean():
    metric = _matrix([[3, 1], [0, 0]])
    assert metric.overall()["mIoU"] == pytest.approx((3 / 4 + 0) / 2)
    assert metric.overall()["mean_accuracy"] == pytest.approx(3 / 4)
    assert math.isnan(metric.per_class()["recall"][1])


def test_counts_beyond_float32():
    """2**24 + 33 pixels in one update, and increments that float32 would lose."""
    metric = ConfusionMatrix(2)
    label = torch.ones(1, 4097, 4095, dtype=torch.uint8)
    label[0, 0] = 0
    metric.update(torch.ones_like(label), label)
    assert metric.matrix.tolist() == [[0, 4095], [0, 4096 * 4095]]
    metric.matrix[1, 1] = 2**40
    metric.update(torch.ones(1, 1, 1, dtype=torch.uint8), torch.ones(1, 1, 1, dtype=torch.uint8))
    assert metric.matrix[1, 1].item() == 2**40 + 1


class OnMps(torch.Tensor):
    """A tensor that says it is on a Mac's GPU, where 64-bit integers cannot be counted."""

    @property
    def device(self):
        return torch.device("mps")

    def cpu(self):
        return self.as_subclass(torch.Tensor)


def test_on_a_macs_gpu_the_cpu_counts(monkeypatch):
    label = torch.tensor([[[0, 1, 255, 1]]], dtype=torch.uint8)
    guess = torch.tensor([[[0, 0, 0, 1]]])
    metric, expected = ConfusionMatrix(2, device="mps"), ConfusionMatrix(2)
    counted, plain = [], torch.bincount
    monkeypatch.setattr(torch, "bincount", lambda x, **m: counted.append(type(x)) or plain(x, **m))
    metric.update(guess.as_subclass(OnMps), label.as_subclass(OnMps))
    expected.update(guess, label)
    assert counted == [torch.Tensor] * 2
    assert metric.matrix.device.type == "cpu" and torch.equal(metric.matrix, expected.matrix)


def test_nothing_counted():
    metric = ConfusionMatrix(2, ("road", "sky"))
    label = torch.full((1, 4, 4), 255, dtype=torch.uint8)
    metric.update(torch.zeros(1, 2, 4, 4), label)
    assert metric.matrix.sum() == 0
    assert metric.to_dict()["mIoU"] is None and metric.to_dict()["kappa"] is None
    assert metric.summary().splitlines()[0] == "mIoU -"
    metric.reduce()  # no process group: nothing to do
    metric.update(torch.zeros_like(label), torch.zeros_like(label))
    assert metric.matrix.sum() == 16


@pytest.mark.parametrize(
    ("prediction", "label", "message"),
    [
        ((1, 19, 2, 2), (1, 2, 2), r"logits \(1, 19, 2, 2\) for 11 classes; N, 11, H, W"),
        ((1, 11, 1, 1), (1, 2, 2), "have different shapes"),
    ],
)
def test_shapes_are_refused(prediction, label, message):
    with pytest.raises(ValueError, match=message):
        ConfusionMatrix(11).update(torch.zeros(prediction), torch.zeros(label).long())


def test_values_are_refused():
    good = torch.zeros(1, 2, 2).long()
    metric = ConfusionMatrix(11)
    for wrong in (11, 33, -1):
        bad = good.clone()
        bad[0, 1, 1] = wrong
        message = rf"label value {wrong} is neither a class \(0\.\.10\) nor ignore \(255\)"
        with pytest.raises(ValueError, match=message):
            metric.update(good, bad)
        with pytest.raises(ValueError, match=rf"prediction {wrong} is not a class \(0\.\.10\)"):
            metric.update(bad, good)
    assert metric.matrix.sum() == 0
    with pytest.raises(ValueError, match="2 class names for 3 classes"):
        ConfusionMatrix(3, ("a", "b"))


def test_table_and_record():
    metric = _matrix([[6, 2, 0], [1, 3, 0], [0, 0, 0]], ("road", "pavement", "sky"))
    lines = metric.table().splitlines()
    assert lines[0].split() == ["class", "share", "IoU", "precision", "recall", "Dice"]
    assert lines[2].split() == ["road", "66.67", "66.67", "85.71", "75.00", "80.00"]
    assert lines[4].split() == ["sky", "0.00", "-", "-", "-", "-"]
    assert lines[-1].split() == ["mean", "58.33", "72.86", "75.00", "73.33"]
    assert len({len(line) for line in lines}) == 1
    assert metric.summary().splitlines()[0] == "mIoU 58.33"
    assert metric.summary().splitlines()[-1] == "absent from truth and prediction: sky"
    record = json.loads(json.dumps(metric.to_dict(), allow_nan=False))
    assert record["classes"]["sky"]["IoU"] is None
    assert record["confusion_matrix"] == [[6, 2, 0], [1, 3, 0], [0, 0, 0]]
    assert record["pixels"] == 12


def _count_in_process(rank: int, rendezvous: str, results: str) -> None:
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2
    )
    metric = ConfusionMatrix(2)
    ones = torch.ones(1, 1, 3 + rank, dtype=torch.uint8)
    metric.update(ones, ones)
    metric.reduce()
    metric.reduce()
    try:
        metric.update(ones, ones)
        refused = False
    except ValueError:
        refused = True
    torch.save((metric.matrix, refused), f"{results}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.medium
def test_sum_over_processes(tmp_path):
    mp.spawn(_count_in_process, (str(tmp_path / "meet"), str(tmp_path)), nprocs=2)
    for rank in range(2):
        matrix, refused = torch.load(tmp_path / f"{rank}.pt")
        assert matrix.tolist() == [[0, 0], [0, 7]]
        assert refused
