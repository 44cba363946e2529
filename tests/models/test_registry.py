"""Every registered architecture keeps the contract of models/base.py."""

import pytest
import torch
from torch import nn

from models import SegModel, build_model, fuse, list_models, resolve_name
from models.layers.drop_path import DropPath
from models.registry import register
from models.weights import load_weights

CLASSES = 7


@pytest.fixture(scope="module", params=list_models())
def model(request) -> SegModel:
    """One network per name, in eval mode, with BatchNorm statistics as after training."""
    torch.manual_seed(0)
    network = build_model(request.param, CLASSES).eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.1)
    return network


def image(height: int = 64, width: int = 96, batch: int = 1) -> torch.Tensor:
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("size", [(64, 96), (65, 97), (72, 120)])
@torch.no_grad()
def test_forward_is_the_main_output_of_forward_train(model, size):
    x = image(*size)
    logits, outputs = model(x), model.forward_train(x)
    expected = tuple(-(-side // model.output_stride) for side in size)
    assert logits.shape == (1, CLASSES, *expected)
    assert torch.equal(logits, outputs.logits)
    assert len(outputs.aux) == model.num_aux
    assert all(aux.shape[:2] == (1, CLASSES) for aux in outputs.aux)
    assert outputs.boundary is None or outputs.boundary.shape == (1, 1, *expected)
    assert model.upsample(logits, size).shape == (1, CLASSES, *size)


@torch.no_grad()
def test_images_of_a_batch_do_not_mix(model):
    batch = image(batch=2)
    alone = model(batch[1:])
    assert (model(batch)[1:] - alone).abs().max() <= 1e-4 * alone.abs().max()


@torch.no_grad()
def test_fuse_keeps_the_numbers_and_the_source(model):
    x, names = image(65, 97), list(model.state_dict())
    before = model(x)
    fused = fuse(model)
    after = fused(x)
    assert (after - before).abs().max() <= 1e-4 * before.abs().max()
    assert list(model.state_dict()) == names
    assert not any(hasattr(fused, head) for head in model.training_only)
    assert all(hasattr(model, head) for head in model.training_only)
    assert count_norms(fused) < count_norms(model)


def count_norms(module: nn.Module) -> int:
    return sum(isinstance(m, nn.BatchNorm2d) for m in module.modules())


def test_gradients_reach_every_parameter(model):
    network = build_model(model.architecture, CLASSES).train()
    for module in network.modules():
        if isinstance(module, DropPath):
            module.rate = 0.0
    out = network.forward_train(image(batch=2))
    extra = [*out.aux, *([] if out.boundary is None else [out.boundary])]
    torch.stack([value.square().mean() for value in (out.logits, *extra)]).sum().backward()
    without = [
        name
        for name, parameter in network.named_parameters()
        if parameter.grad is None or not parameter.grad.isfinite().all()
    ]
    assert without == []
    # A convolution bias in front of a BatchNorm has, up to rounding, no gradient.
    silent = [
        name for name, p in network.named_parameters() if p.ndim > 1 and not p.grad.abs().sum() > 0
    ]
    assert silent == []


def test_learning_rate_multipliers_name_submodules(model):
    assert all(hasattr(model, name) for name in model.lr_multipliers)
    assert all(hasattr(model, name) for name in model.training_only)


def test_checkpoint_round_trip(model, tmp_path):
    path = tmp_path / "last.pt"
    torch.save({"model": model.state_dict(), "architecture": model.architecture}, path)
    other = build_model(model.architecture, CLASSES)
    report = load_weights(other, path)
    assert report.startswith(f"{len(model.state_dict())} loaded, 0 dropped, 0 missing")
    for (name, ours), theirs in zip(
        model.state_dict().items(), other.state_dict().values(), strict=True
    ):
        assert torch.equal(ours, theirs), name


def one_per_family() -> list[str]:
    """One name of every class: variants differ in numbers only."""
    with torch.device("meta"):
        kinds = {type(build_model(name, 2)): name for name in list_models()}
    return sorted(kinds.values())


@pytest.mark.parametrize("name", one_per_family())
@torch.no_grad()
def test_fused_network_exports(name):
    fused, x = fuse(build_model(name, CLASSES)), image()
    program = torch.export.export(fused, (x,), strict=False)
    expected = fused(x)
    assert (program.module()(x) - expected).abs().max() <= 1e-4 * expected.abs().max()


def test_names_are_exact():
    assert {"pidnet_s", "pidnet_m", "pidnet_l", "rtformer_slim", "rtformer_base"} <= {
        *list_models()
    }
    assert resolve_name("pidnet_s") == "pidnet_s"
    with pytest.raises(ValueError, match="'pidnet_small'; did you mean pidnet_s"):
        build_model("pidnet_small", 19)
    with pytest.raises(ValueError, match=r"'zzz'\. Known: .*pidnet_l"):
        build_model("zzz", 19)


def test_options_are_checked():
    with pytest.raises(ValueError, match="pidnet_s has no option depth; it takes base_channels"):
        build_model("pidnet_s", 19, depth=3)
    with pytest.raises(ValueError, match="num_classes is 1; at least 2"):
        build_model("pidnet_s", 1)
    with pytest.raises(ValueError, match="pidnet_s is registered twice"):
        register(SegModel, {"pidnet_s": {}})


def test_options_replace_the_variants_values():
    model = build_model("pidnet_s", 5, base_channels=8, context_channels=12, head_channels=16)
    assert model.options["base_channels"] == 8
    assert model.head.classify.weight.shape == (5, 16, 1, 1)
    assert model.context.scales[0].conv.out_channels == 12


def test_size_check_names_the_padded_size():
    model = build_model("pidnet_s", 2, base_channels=4)
    model.size_divisor = 8
    model.check_size(720, 960)
    with pytest.raises(ValueError, match=r"724x964 is not a multiple of 8.*pidnet_s.*728x968"):
        model.check_size(724, 964)
