"""Losses: the published numbers and gradients, and the batches on which such losses break."""

import json
from typing import NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from utils.criterion import (
    CrossEntropy,
    OhemCrossEntropy,
    SegCriterion,
    boundary_loss,
    check_labels,
    pixel_loss,
)


class Outputs(NamedTuple):
    logits: Tensor
    aux: tuple[Tensor, ...] = ()
    boundary: Tensor | None = None


class Fixture(NamedTuple):
    results: dict
    class_weights: list[float]
    arrays: dict[str, np.ndarray]

    def tensor(self, name: str) -> Tensor:
        return torch.from_numpy(self.arrays[name].copy())

    def upsampled(self, name: str) -> Tensor:
        return F.interpolate(
            self.tensor(name), size=(128, 256), mode="bilinear", align_corners=True
        )


@pytest.fixture(scope="module")
def published(shared) -> Fixture:
    record = json.loads((shared / "parity/losses_pidnet.json").read_text())
    with np.load(shared / "parity/losses_pidnet.npz") as arrays:
        stored = {name: arrays[name] for name in arrays.files}
    return Fixture(record["results"], record["settings"]["class_weights"], stored)


SETTINGS = {
    "yaml": ("yaml settings (OHEM thres 0.9, keep 131072, class weights)", 0.9, 131072, True),
    "thr002_keep5000": ("as yaml but OHEM thres 0.02, keep 5000", 0.02, 5000, True),
    "thr05_keep3000_noweights": (
        "as yaml but OHEM thres 0.5, keep 3000, no class weights",
        0.5,
        3000,
        False,
    ),
}


@pytest.mark.parametrize("setting", SETTINGS)
def test_pidnet_total_parts_and_gradients(published, setting):
    key, threshold, min_kept, weighted = SETTINGS[setting]
    reference = published.results["full_model"][key]
    p, i, d = (published.tensor(f"logits_{x}").requires_grad_() for x in "pid")
    criterion = SegCriterion(
        "ohem",
        class_weights=published.class_weights if weighted else None,
        ohem_threshold=threshold,
        ohem_min_kept=min_kept,
        aux_weights=(0.4,),
        aux_average="all",
        boundary_weight=20.0,
        boundary_aware_weight=1.0,
        align_corners=True,
    )
    loss, parts = criterion(
        Outputs(i, (p,), d), published.tensor("label"), published.tensor("edge")
    )
    loss.backward()
    assert loss.item() == pytest.approx(reference["total"], rel=2e-6)
    assert (parts["main"] + parts["aux"]).item() == pytest.approx(reference["loss_s"], rel=2e-6)
    assert parts["boundary"].item() == pytest.approx(reference["loss_b"], rel=2e-6)
    assert parts["boundary_aware"].item() == pytest.approx(reference["loss_sb"], rel=2e-6)
    assert sum(parts.values()).item() == pytest.approx(loss.item(), rel=1e-6)
    for name, logits in zip("pid", (p, i, d), strict=True):
        expected = published.tensor(f"grad_{setting}/{name}")
        difference = (logits.grad - expected).abs().max() / expected.abs().max()
        assert difference < 2e-5, name


def test_ohem_numbers(published):
    logits, label = published.upsampled("logits_i"), published.tensor("label")
    cases = published.results["ohem_single_on_upsampled_logits_i"]
    assert len(cases) == 40
    for case in cases:
        weights = published.class_weights if case["class_weights"] else None
        loss = OhemCrossEntropy(case["thres"], case["min_kept"], weights)
        assert loss(logits, label).item() == pytest.approx(case["value"], rel=2e-6), case
        kept = loss._kept(torch.exp(-pixel_loss(logits, label.long())), label != 255)
        assert kept.sum() == case["kept_pixels"], case


def test_cross_entropy_numbers(published):
    expected = published.results["cross_entropy"]
    p, i = published.upsampled("logits_p"), published.upsampled("logits_i")
    label = published.tensor("label")
    weighted, plain = CrossEntropy(published.class_weights), CrossEntropy()
    everywhere = CrossEntropy(published.class_weights, average="all")
    i_alone = expected["CrossEntropy on i alone, class weights"]
    assert weighted(i, label).item() == pytest.approx(i_alone, rel=2e-6)
    both = expected["same without class weights"]
    assert (0.4 * plain(p, label) + plain(i, label)).item() == pytest.approx(both, rel=2e-6)
    over_all = next(value for key, value in expected.items() if "ALL pixels" in key)
    assert everywhere(p, label).item() == pytest.approx(over_all, rel=2e-6)


def test_boundary_numbers(published):
    expected = published.results["boundary"]
    logits, edge = published.upsampled("logits_d"), published.tensor("edge")
    total = expected["BondaryLoss (coefficient 20)"]
    assert boundary_loss(logits, edge).item() == pytest.approx(total, rel=2e-6)
    unknown = edge.clone()
    unknown[:, :20] = 255
    masked = next(value for key, value in expected.items() if "first 20 rows" in key)
    assert boundary_loss(logits, unknown, 1.0).item() == pytest.approx(masked, rel=2e-6)


def test_rtformer_recipe_is_the_mean_over_valid_pixels():
    torch.manual_seed(0)
    logits, aux = torch.randn(2, 5, 4, 6), torch.randn(2, 5, 4, 6)
    label = torch.randint(0, 5, (2, 32, 48))
    label[:, :10] = 255
    criterion = SegCriterion("ce", aux_weights=(0.4,))
    loss, parts = criterion(Outputs(logits, (aux,)), label.to(torch.uint8))
    terms = [
        F.cross_entropy(F.interpolate(x, size=(32, 48), mode="bilinear"), label, ignore_index=255)
        for x in (logits, aux)
    ]
    assert loss.item() == pytest.approx((terms[0] + 0.4 * terms[1]).item(), rel=1e-6)
    assert set(parts) == {"main", "aux"}


def _batch(classes: int = 4, dtype: torch.dtype = torch.float32):
    generator = torch.Generator().manual_seed(3)
    draw = lambda *shape: torch.randn(*shape, generator=generator).to(dtype).requires_grad_()  # noqa: E731
    outputs = Outputs(draw(2, classes, 4, 4), (draw(2, classes, 4, 4),), draw(2, 1, 4, 4))
    label = torch.randint(0, classes, (2, 16, 16), generator=generator).to(torch.uint8)
    boundary = (torch.rand(2, 16, 16, generator=generator) < 0.2).to(torch.uint8)
    return outputs, label, boundary


def _criterion(main: str = "ohem", **changes) -> SegCriterion:
    arguments = {
        "aux_weights": (0.4,),
        "boundary_weight": 20.0,
        "boundary_aware_weight": 1.0,
        "class_weights": (1.0, 2.0, 0.5, 1.5),
        "ohem_min_kept": 50,
    }
    return SegCriterion(main, **(arguments | changes))


def _gradients(loss: Tensor, outputs: Outputs) -> list[Tensor]:
    loss.backward()
    return [x.grad for x in (outputs.logits, *outputs.aux, outputs.boundary)]


@pytest.mark.parametrize("main", ["ohem", "ce"])
@pytest.mark.parametrize("average", ["valid", "all"])
def test_all_ignored_is_zero_and_connected(main, average):
    outputs, label, boundary = _batch()
    criterion = _criterion(main, aux_average=average, boundary_weight=0.0)
    loss, _ = criterion(outputs, torch.full_like(label, 255), boundary)
    assert loss.item() == 0.0
    for gradient in _gradients(loss, outputs):
        assert gradient is not None and not gradient.any()


@pytest.mark.parametrize("main", ["ohem", "ce"])
def test_no_boundary_pixel(main):
    """No boundary in the label: that term is 0; none predicted: the boundary-aware term is 0."""
    outputs, label, boundary = _batch()
    silent = torch.full_like(outputs.boundary, -9.0).requires_grad_()
    outputs = outputs._replace(boundary=silent)
    loss, parts = _criterion(main)(outputs, label, torch.zeros_like(boundary))
    assert parts["boundary"] == 0.0 and parts["boundary_aware"] == 0.0
    assert parts["main"] > 0
    main_gradient, _, boundary_gradient = _gradients(loss, outputs)
    assert main_gradient.any() and not boundary_gradient.any()
    assert all(g.isfinite().all() for g in (main_gradient, boundary_gradient))


def test_min_kept_above_the_number_of_pixels_drops_the_most_confident():
    torch.manual_seed(2)
    logits, label = torch.randn(2, 4, 16, 16), torch.randint(0, 4, (2, 16, 16))
    label[0] = 255
    losses = pixel_loss(logits, label)[1].flatten().sort().values
    loss = OhemCrossEntropy(threshold=0.01, min_kept=10**9)
    assert loss(logits, label).item() == pytest.approx(losses[1:].mean().item(), rel=1e-6)


def test_auxiliary_heads_can_mine_hard_pixels_too():
    torch.manual_seed(0)
    logits, *aux = 3 * torch.randn(3, 2, 5, 6, 8)
    label = torch.randint(0, 5, (2, 6, 8))
    settings = {"ohem_threshold": 0.3, "ohem_min_kept": 10, "class_weights": [1, 2, 3, 4, 5]}
    criterion = SegCriterion("ohem", aux="ohem", aux_weights=(0.4, 1.0), **settings)
    _, parts = criterion(Outputs(logits, tuple(aux)), label)
    alone = OhemCrossEntropy(0.3, 10, settings["class_weights"])
    expected = 0.4 * alone(aux[0], label) + alone(aux[1], label)
    torch.testing.assert_close(parts["aux"], expected)
    plain = SegCriterion("ohem", aux_weights=(0.4, 1.0), **settings)
    assert plain(Outputs(logits, tuple(aux)), label)[1]["aux"] != parts["aux"]


def test_ohem_with_nothing_below_the_threshold():
    """One valid pixel, and pixels that are all certain: nothing is kept, the loss is 0."""
    certain = torch.tensor([60.0, -60.0]).view(1, 2, 1, 1).expand(1, 2, 4, 4).clone()
    certain.requires_grad_()
    label = torch.zeros(1, 4, 4, dtype=torch.uint8)
    loss = OhemCrossEntropy(0.9, 3)(certain, label)
    loss.backward()
    assert loss.item() == 0.0 and not certain.grad.any()
    label[0].flatten()[1:] = 255
    likely = certain.detach() / 100  # probability 0.77
    assert OhemCrossEntropy(0.5, 3)(likely, label).item() == 0.0


def test_ohem_selection_equals_a_sort():
    torch.manual_seed(1)
    probability = torch.rand(3, 40, 50)
    valid = torch.rand(3, 40, 50) < 0.7
    ordered = probability[valid].sort().values
    for min_kept in (0, 1, 7, 500, 2500, len(ordered) - 1, len(ordered), 10**6):
        loss = OhemCrossEntropy(0.001, min_kept)
        threshold = max(ordered[min(max(min_kept, 1), len(ordered) - 1)], torch.tensor(0.001))
        expected = valid & (probability < threshold)
        assert torch.equal(loss._kept(probability, valid), expected), min_kept


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_logits_give_a_float32_loss(dtype):
    outputs, label, boundary = _batch(dtype=dtype)
    wide = Outputs(outputs.logits.float(), (outputs.aux[0].float(),), outputs.boundary.float())
    loss, parts = _criterion()(outputs, label, boundary)
    with torch.autocast("cpu", torch.bfloat16):
        under_autocast, _ = _criterion()(wide, label, boundary)
    expected, _ = _criterion()(wide, label, boundary)
    assert loss.dtype == under_autocast.dtype == torch.float32
    assert all(part.dtype == torch.float32 for part in parts.values())
    assert loss.item() == under_autocast.item() == expected.item()
    assert all(g.isfinite().all() for g in _gradients(loss, outputs))


@pytest.mark.parametrize("loss", [CrossEntropy(), OhemCrossEntropy(0.9, 20)])
def test_single_losses_compute_in_float32(loss):
    logits = (10 * torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(5))).half()
    label = torch.zeros(2, 16, 16, dtype=torch.uint8)
    assert loss(logits, label).item() == loss(logits.float(), label).item()
    edge = boundary_loss(logits[:, :1], label)
    assert edge.dtype == loss(logits, label).dtype == torch.float32


def test_large_half_precision_logits_stay_finite():
    outputs, label, boundary = _batch(dtype=torch.float16)
    huge = Outputs(*(x.detach() * 2e4 for x in (outputs.logits,)), (outputs.aux[0],), outputs[2])
    loss, _ = _criterion()(huge, label, boundary)
    assert loss.isfinite()


@pytest.mark.parametrize("value", [4, 33, 254])
def test_label_out_of_range_is_one_sentence(value):
    outputs, label, boundary = _batch()
    label[1, 3, 5] = value
    with pytest.raises(ValueError, match=rf"label value {value} is neither a class \(0\.\.3\)"):
        _criterion()(outputs, label, boundary)
    with pytest.raises(ValueError, match="nor ignore"):
        check_labels(label, 4)


def test_negative_label_is_refused():
    label = torch.full((1, 2, 2), -1)
    with pytest.raises(ValueError, match="label value -1"):
        CrossEntropy()(torch.zeros(1, 3, 2, 2), label)


@pytest.mark.parametrize(
    ("changes", "outputs_change", "message"),
    [
        ({}, {"boundary": None}, "without a boundary output"),
        ({"boundary_weight": 0.0}, {"boundary": None}, "without a boundary output"),
        ({}, {"aux": ()}, "1 auxiliary loss weights .* 0 auxiliary outputs"),
        ({"aux_weights": ()}, {}, "0 auxiliary loss weights .* 1 auxiliary outputs"),
        ({"class_weights": (1.0, 2.0)}, {}, "2 class weights for logits of 4 classes"),
    ],
)
def test_terms_that_the_network_does_not_have(changes, outputs_change, message):
    outputs, label, boundary = _batch()
    with pytest.raises(ValueError, match=message):
        _criterion(**changes)(outputs._replace(**outputs_change), label, boundary)


def test_missing_or_misfitting_targets():
    outputs, label, boundary = _batch()
    with pytest.raises(ValueError, match="the batch has no boundary map"):
        _criterion()(outputs, label)
    with pytest.raises(ValueError, match="do not fit the boundary map"):
        _criterion()(outputs, label, boundary[:, :-1])
    with pytest.raises(ValueError, match="do not fit the label"):
        _criterion()(outputs, label[:1], boundary)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"main": "dice"}, "main loss is 'dice'; it must be one of ohem, ce"),
        ({"ohem_threshold": 0.0}, "OHEM threshold is 0.0"),
        ({"ohem_min_kept": -1}, "OHEM min_kept is -1"),
        ({"aux_weights": (0.4, -1.0)}, "must not be negative"),
        ({"aux_average": "none"}, "average is 'none'"),
        ({"aux": "dice"}, "auxiliary loss is 'dice'; it must be one of ohem, ce"),
    ],
)
def test_bad_settings(arguments, message):
    with pytest.raises(ValueError, match=message):
        SegCriterion(**arguments)


def test_zero_weights_leave_the_heads_in_the_graph():
    outputs, label, _ = _batch()
    criterion = _criterion(aux_weights=(0.0,), boundary_weight=0.0, boundary_aware_weight=0.0)
    loss, parts = criterion(outputs, label)
    assert set(parts) == {"main"}
    main, aux, boundary = _gradients(loss, outputs)
    assert main.any() and not aux.any() and not boundary.any()


def test_class_weights_follow_the_module_and_stay_out_of_checkpoints():
    criterion = _criterion()
    assert not criterion.state_dict()
    assert {name for name, _ in criterion.named_buffers()} == {
        "main.class_weights",
        "aux.class_weights",
    }
