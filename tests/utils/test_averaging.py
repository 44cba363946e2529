"""Norm statistics that take a step back."""

import pytest
import torch
from torch import nn

from utils.averaging import NormStatistics


@pytest.mark.parametrize("bad", [False, True])
def test_statistics_go_back_only_after_a_bad_step(bad):
    torch.manual_seed(0)
    model = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 5, 1), nn.BatchNorm2d(5).double())
    norms = NormStatistics(model)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    for norm, channels in ((model[0], 3), (model[2], 5)):
        norm(torch.randn(2, channels, 4, 4, dtype=norm.weight.dtype) / (0.0 if bad else 1.0))
    norms.settle(torch.tensor(bad))
    for key, value in model.state_dict().items():
        if "running" in key:
            assert torch.equal(value, before[key]) == bad, key
    model[0].running_mean.fill_(7.0)
    norms.remember()
    model[0].running_mean.fill_(float("nan"))
    norms.settle(torch.tensor(True))
    assert (model[0].running_mean == 7.0).all()


def test_a_network_without_norms_is_fine():
    norms = NormStatistics(nn.Conv2d(3, 5, 1))
    norms.remember()
    norms.settle(torch.tensor(True))
