"""What configs/_base_/strong_recipe.yaml makes of a network's own recipe."""

from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from builders import build_criterion, build_network
from torch import Tensor

from configs import get_config
from datasets import enet_weights, get_meta
from utils.criterion import SegCriterion

ROOT = Path(__file__).resolve().parents[2]
STRONG = ROOT / "configs/_base_/strong_recipe.yaml"
NETWORKS = (
    "pidnet_s_camvid_360x480",
    "rdrnet_s_simple_camvid",
    "gcnet_s_camvid",
    "rtformer_base_camvid_360x480",
    "rtlinearformer_base_camvid_360x480_best",
)


class Outputs(NamedTuple):
    logits: Tensor
    aux: tuple[Tensor, ...]
    boundary: Tensor | None


def parts(criterion, logits, label, edge):
    outputs = Outputs(logits, (logits,) * len(criterion.aux_weights), edge)
    return criterion(outputs, label, torch.zeros_like(label))[1]


@pytest.mark.parametrize("name", NETWORKS)
def test_counted_weights_leave_the_parts_of_the_loss_where_they_were(name):
    """On labels as they were counted, by a network that knows nothing yet."""
    words = ["LOSS.BOUNDARY_WEIGHT", "0"]
    config = get_config([ROOT / f"configs/camvid/{name}.yaml", STRONG], words)
    assert config.DATASET.CLASS_WEIGHTS == "enet"
    meta = get_meta("camvid")
    with torch.device("meta"):
        network = build_network(config, meta)
    weighed, plain = (build_criterion(config, network, meta) for _ in range(2))
    label = torch.randint(0, 11, (2, 30, 40), generator=torch.Generator().manual_seed(0))
    label[:, 4:] = 6
    weighed.weigh_classes(enet_weights(label.flatten().bincount(minlength=11).tolist()))
    logits, edge = torch.zeros(2, 11, 30, 40), torch.full((2, 1, 30, 40), 9.0)
    edge = edge if network.has_boundary else None
    label[:, :, :20] = 255  # a mean over all pixels would tell
    found, expected = (parts(c, logits, label, edge) for c in (weighed, plain))
    assert found.keys() == expected.keys() and {"main", "aux"} <= found.keys()
    for part in found:
        assert found[part].item() == pytest.approx(expected[part].item(), rel=0.05), part
    assert expected["aux"].item() == pytest.approx(0.4 * expected["main"].item())


@pytest.mark.parametrize("average", ["valid", "all"])
@pytest.mark.parametrize("loss", ["ce", "ohem"])
def test_weights_do_not_change_how_large_a_loss_is(loss, average):
    pixels = [3, 40, 557]
    label = torch.arange(3).repeat_interleave(torch.tensor(pixels)).view(1, 20, 30)
    logits = torch.zeros(1, 3, 20, 30)
    values = []
    for weights in (None, enet_weights(pixels)):
        criterion = SegCriterion(
            loss, aux=loss, aux_average=average, aux_weights=(0.4,), class_weights=weights
        )
        values.append(parts(criterion, logits, label, None))
    for part, value in values[0].items():
        assert values[1][part].item() == pytest.approx(value.item(), rel=1e-5), part
