"""Dropout in the heads: only while training, and nothing else of the network changes."""

import pytest
import torch
from torch import nn

from models import accepted_options, build_model, fuse, list_models

TAKING = [name for name in list_models() if "dropout" in accepted_options(name)]
SMALL = [name for name in TAKING if name.split("_")[1] in ("s", "slim", "23")]


def test_the_families_with_a_shared_head_take_it():
    families = {name.partition("_")[0] for name in TAKING}
    assert families == {"ddrnet", "gcnet", "pidnet", "rdrnet", "rtformer", "rtlinearformer"}


@pytest.mark.medium
@pytest.mark.parametrize("name", SMALL)
def test_heads_drop_channels_while_training_only(name):
    plain, dropping = build_model(name, 4).eval(), build_model(name, 4, dropout=0.5).eval()
    dropping.load_state_dict(plain.state_dict())  # the same keys
    x = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        assert torch.equal(plain(x), dropping(x))
        fused = fuse(dropping)
        assert torch.equal(fused(x), fuse(plain)(x))
        assert not any(isinstance(m, nn.Dropout2d) for m in fused.modules())
        for network, differs in ((plain, False), (dropping, True)):
            for dropout in (m for m in network.modules() if isinstance(m, nn.Dropout2d)):
                dropout.train()
            outputs = [network.forward_train(x) for _ in range(2)]
            for one, two in zip(*[(o.logits, *o.aux) for o in outputs], strict=True):
                assert torch.equal(one, two) != differs


@pytest.mark.parametrize("rate", [-0.1, 1.1])
def test_a_rate_outside_0_to_1_is_refused(rate):
    with pytest.raises(ValueError, match=r"dropout.* between 0 and 1"):
        build_model("rtlinearformer_slim", 4, dropout=rate)
