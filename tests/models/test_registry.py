"""Every registered architecture keeps the contract of models/base.py."""

import copy
import inspect

import pytest
import torch
from torch import nn

from models import (
    SegModel,
    accepted_options,
    build_backbone,
    build_model,
    fuse,
    list_backbones,
    list_models,
    resolve_name,
)
from models.layers.conv import ConvBN
from models.layers.drop_path import DropPath
from models.registry import register, register_backbone
from models.weights import load_weights

CLASSES = 7


def as_trained(network: nn.Module) -> nn.Module:
    """Eval mode; norms, biases and layer scales have values as after training, in every channel."""
    torch.manual_seed(0)
    for name, value in [*network.named_parameters(), *network.named_buffers()]:
        if value.ndim != 1:
            continue
        if name.endswith(("weight", "running_var", "scale1", "scale2")):
            nn.init.uniform_(value, 0.5, 1.5)
        else:
            nn.init.normal_(value, 0, 0.1)
    return network.eval()


@pytest.fixture(scope="module", params=list_models())
def model(request) -> SegModel:
    """One network per name; a test may run it in training mode but leaves its values alone."""
    torch.manual_seed(0)
    return as_trained(build_model(request.param, CLASSES))


@pytest.fixture(scope="module")
def fused(model) -> nn.Module:
    """Its deployed form."""
    return fuse(model)


def image(height: int = 64, width: int = 64, batch: int = 1) -> torch.Tensor:
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("size", [(64, 64), (65, 97), (59, 40)])
@torch.no_grad()
def test_forward_is_the_main_output_of_forward_train(model, size):
    x = image(*size)
    model.check_size(*size)
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
def test_fuse_keeps_the_numbers_and_the_source(model, fused):
    x = image(65, 97)
    before, after = model(x), fused(x)
    assert (after - before).abs().max() <= 1e-4 * before.abs().max()
    assert list(model.state_dict()) == list(meta(model.architecture).state_dict())
    assert not any(hasattr(fused, head) for head in model.training_only)
    assert all(hasattr(model, head) for head in model.training_only)
    assert count_norms(fused) < count_norms(model)


def test_fusing_draws_no_random_numbers(model):
    """Else a run that is scored on its way would go another way than one that is not."""
    before = torch.get_rng_state()
    fuse(model)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.medium
@torch.no_grad()
def test_fused_network_exports(fused):
    x = image()
    program = torch.export.export(fused, (x,), strict=False)
    expected = fused(x)
    assert (program.module()(x) - expected).abs().max() <= 1e-4 * expected.abs().max()


def count_norms(module: nn.Module) -> int:
    return sum(isinstance(m, nn.BatchNorm2d) for m in module.modules())


@pytest.mark.medium
def test_gradients_reach_every_parameter(model):
    network = copy.deepcopy(model).train()
    for module in network.modules():
        if isinstance(module, DropPath):
            module.rate = 0.0
    out = network.forward_train(image(64, 96, batch=2))
    extra = [*out.aux, *([] if out.boundary is None else [out.boundary])]
    torch.stack([value.square().mean() for value in (out.logits, *extra)]).sum().backward()
    parameters = dict(network.named_parameters())
    without = [n for n, p in parameters.items() if p.grad is None or not p.grad.isfinite().all()]
    assert without == []
    # A constant that a BatchNorm takes away again has, up to rounding, no gradient.
    constant = {f"{n}.conv.bias" for n, m in network.named_modules() if isinstance(m, ConvBN)}
    constant.add("embedding.norm.bias")
    for name in constant & set(parameters):
        del parameters[name]
    assert [name for name, p in parameters.items() if not p.grad.abs().sum() > 0] == []


def test_learning_rate_multipliers_name_submodules(model):
    assert all(hasattr(model, name) for name in model.lr_multipliers)
    assert all(hasattr(model, name) for name in model.training_only)


@pytest.mark.medium
def test_checkpoint_round_trip(model, tmp_path):
    path = tmp_path / "last.pt"
    torch.save({"model": model.state_dict(), "architecture": model.architecture}, path)
    other = build_model(model.architecture, CLASSES)
    report = load_weights(other, path)
    assert report.startswith(
        f"{len(model.state_dict())} tensors loaded, none dropped, none missing"
    )
    for (name, ours), theirs in zip(
        model.state_dict().items(), other.state_dict().values(), strict=True
    ):
        assert torch.equal(ours, theirs), name


def test_names_are_exact():
    assert list_models() == sorted(
        "pidnet_s pidnet_m pidnet_l rtformer_slim rtformer_base rtlinearformer_slim "
        "rtlinearformer_base ddrnet_23_slim ddrnet_23 ddrnet_39 rdrnet_s_simple rdrnet_s rdrnet_m "
        "rdrnet_l gcnet_s gcnet_m gcnet_l bisenetv1_r18 bisenetv2 lrformer_t lrformer_s lrformer_b "
        "lrformer_l".split()
    )
    assert resolve_name("pidnet_s") == "pidnet_s"
    with pytest.raises(ValueError, match="'pidnet_small'; did you mean pidnet_s"):
        build_model("pidnet_small", 19)
    with pytest.raises(ValueError, match=r"'zzz'\. Known: .*pidnet_l"):
        build_model("zzz", 19)
    with pytest.raises(ValueError, match=r"lrformer_xl is a backbone .*build_backbone builds it"):
        build_model("lrformer_xl", 19)


def test_options_are_checked():
    with pytest.raises(ValueError, match="pidnet_s has no option depth; it takes base_channels"):
        build_model("pidnet_s", 19, depth=3)
    with pytest.raises(ValueError, match="num_classes is 1; at least 2"):
        build_model("pidnet_s", 1)
    with pytest.raises(ValueError, match="pidnet_s is registered twice"):
        register(SegModel, {"pidnet_s": {}})


@pytest.mark.parametrize("name", list_models())
def test_accepted_options_can_be_given(name):
    options = accepted_options(name)
    assert "num_classes" not in options and len(set(options)) == len(options)
    parameters = inspect.signature(type(meta(name))).parameters
    given = {o: parameters[o].default for o in options if o != "base_channels"}
    assert meta(name, **given).options == given


@pytest.mark.filterwarnings("ignore:Initializing zero-element")
@pytest.mark.parametrize("name", {n.split("_")[0]: n for n in list_models()}.values())
def test_senseless_options_are_refused_in_one_sentence(name):
    for option in accepted_options(name):
        for bad in (-1, 0, float("nan"), "a", ()):
            try:
                meta(name, **{option: bad})
            except ValueError as error:  # and no other
                assert "\n" not in str(error)
    width = "embed_dims" if name.startswith("lrformer") else "base_channels"
    for bad in (-1, 0, "a"):
        with pytest.raises(ValueError):
            meta(name, **{width: (bad,) * 4 if width == "embed_dims" else bad})


@pytest.mark.filterwarnings("ignore:Initializing zero-element")
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("rtlinearformer_slim", {"low_to_high": "foo"}),
        ("rtlinearformer_slim", {"base_channels": 0}),
        ("rtlinearformer_slim", {"focus_power": float("nan")}),
        ("rtformer_slim", {"base_channels": 1.5}),
        ("pidnet_s", {"head_channels": float("inf")}),
        ("lrformer_t", {"depths": (2, 2, 2, float("nan"))}),
    ],
)
def test_what_cannot_be_built_is_named_with_its_options(name, options):
    with pytest.raises(ValueError) as caught:
        meta(name, **options)
    assert str(caught.value).startswith(name) and f"options {options}" in str(caught.value)


def test_accepted_options_of_an_unknown_name():
    with pytest.raises(ValueError, match="'pidnet_small'; did you mean pidnet_s"):
        accepted_options("pidnet_small")


def meta(name: str, **options) -> SegModel:
    with torch.device("meta"):
        return build_model(name, CLASSES, **options)


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


# Backbones alone

NARROW = {"embed_dims": (4, 8, 20, 32), "expansions": (2, 2, 2, 2)}


@pytest.fixture(scope="module", params=list_backbones())
def backbone(request) -> nn.Module:
    """Every backbone in its full depth, made narrow: the full widths are those of the models."""
    return as_trained(build_backbone(request.param, **NARROW))


@pytest.mark.parametrize("size", [(64, 64), (65, 97), (59, 40)])
@torch.no_grad()
def test_backbone_gives_features_from_fine_to_coarse(backbone, size):
    features = backbone(image(*size))
    expected = zip((4, 4, 8, 20, 32), (4, 4, 8, 16, 32), strict=True)
    shapes = [(1, c, *(-(-side // stride) for side in size)) for c, stride in expected]
    assert isinstance(features, list) and [f.shape for f in features] == shapes
    assert backbone.channels == NARROW["embed_dims"]
    assert all(f.isfinite().all() and f.std() > 0 for f in features)


@torch.no_grad()
def test_backbone_fuses_and_comes_back_from_a_file(backbone, tmp_path):
    x = image(65, 97)
    before, path = backbone(x), tmp_path / "backbone.pt"
    fused = fuse(backbone)
    assert count_norms(fused) < count_norms(backbone)
    torch.save({"model": backbone.state_dict(), "architecture": backbone.architecture}, path)
    name = backbone.architecture.removesuffix(" backbone")
    other = build_backbone(name, **NARROW).eval()
    report = load_weights(other, path)
    assert report.startswith(
        f"{len(backbone.state_dict())} tensors loaded, none dropped, none missing"
    )
    for ours, folded, theirs in zip(before, fused(x), other(x), strict=True):
        assert (folded - ours).abs().max() <= 1e-4 * ours.abs().max()
        assert torch.equal(ours, theirs)


@pytest.mark.medium
@torch.no_grad()
def test_backbone_exports():
    depths = (1, 1, 21, 1)  # deep enough for the norms in the residual stream
    network, x = as_trained(build_backbone("lrformer_xl", depths=depths, **NARROW)), image(65, 97)
    fused = fuse(network)
    program = torch.export.export(fused, (x,), strict=False)
    for ours, theirs in zip(fused(x), program.module()(x), strict=True):
        assert (theirs - ours).abs().max() <= 1e-4 * ours.abs().max()


def test_backbone_gradients(backbone):
    network = copy.deepcopy(backbone).train()
    for module in network.modules():
        if isinstance(module, DropPath):
            module.rate = 0.0
    torch.stack([f.square().mean() for f in network(image(batch=2))]).sum().backward()
    assert [n for n, p in network.named_parameters() if p.grad is None] == []
    silent = [n for n, p in network.named_parameters() if p.ndim > 1 and not p.grad.any()]
    assert silent == []


def test_backbone_names_and_options_are_checked():
    names = list_backbones()
    assert names == sorted(f"lrformer_{size}" for size in "t s b l xl".split())
    assert accepted_options("lrformer_xl") == list(inspect.signature(build_class()).parameters)
    assert set(accepted_options("lrformer_t")) == {
        *accepted_options("lrformer_xl"),
        "head_channels",
    }
    with pytest.raises(ValueError, match=r"unknown backbone 'pidnet_s'\. Known: .*lrformer_xl"):
        build_backbone("pidnet_s")
    with pytest.raises(ValueError, match="lrformer_xl has no option head_channels; it takes embed"):
        build_backbone("lrformer_xl", head_channels=8)
    with pytest.raises(ValueError, match="lrformer_xl has no option num_classes"):
        build_backbone("lrformer_xl", num_classes=19)
    with pytest.raises(ValueError, match="backbone lrformer_t is registered twice"):
        register_backbone(nn.Identity, {"lrformer_t": {}})


def build_class() -> type:
    with torch.device("meta"):
        return type(build_backbone("lrformer_t"))
