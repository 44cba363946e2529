"""GCNet: sizes of all forms, rectified sums, and that the deployed form computes the same."""

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from checkpoint_files import golden_keys, named, refuse
from networks import bilinear, count, multiply_adds, trained
from torch import nn

from models import SegModel, build_model, fuse
from models.gcnet import GCBlock, gc_stage
from models.layers.reparam import merge_paths
from models.weights import load_weights, rename_for
from utils.parity import fill, read_fixture

# parameters of the training form; deployed, where only the blocks are merged, with and without the
# auxiliary head; 1e9 multiply-adds at 1024x2048 with several paths and deployed
PUBLISHED = {
    "gcnet_s": (20_695_430, 9_208_326, 9_169_971, 102.55, 45.11),
    "gcnet_m": (80_052_710, 34_206_438, 34_056_019, 408.14, 178.36),
    "gcnet_l": (106_206_566, 45_162_150, 44_861_587, 524.18, 231.59),
}
# 1e9 multiply-adds of the deployed form at 720x960 and 512x512
SMALLER = {"gcnet_s": (14.96, 5.64), "gcnet_m": (59.14, 22.30), "gcnet_l": (76.79, 28.95)}
# tensors of an official file; blocks of stages 2 to 6, and how many have the identity
TENSORS = {"gcnet_s": 1339, "gcnet_m": 1339, "gcnet_l": 1585}
BLOCKS = {
    "gcnet_s": ((4, 4), (5, 4), (5, 4), (2, 2), 25),
    "gcnet_m": ((4, 4), (5, 4), (5, 4), (2, 2), 25),
    "gcnet_l": ((5, 5), (5, 5), (5, 5), (3, 3), 31),
}
NORMS_AFTER_FUSE = [f"context.scales.{i}.norm" for i in range(5)]
NORMS_AFTER_FUSE += [f"context.process.{i}.norm" for i in range(4)]
NORMS_AFTER_FUSE += ["context.compression.norm", "context.shortcut.norm", "head.norm"]


def small(name: str = "gcnet_s", **options) -> SegModel:
    widths = {"base_channels": 4, "context_channels": 6, "head_channels": 8}
    return trained(build_model(name, 3, **widths, **options))


def merged(model: nn.Module) -> nn.Module:
    """A copy in which only the blocks are merged, as in the official deployed form."""
    model = copy.deepcopy(model)
    for name, module in list(model.named_modules()):
        if isinstance(module, GCBlock):
            parent, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(parent), leaf, module.fuse())
    return model


@pytest.mark.medium
@pytest.mark.parametrize("name", PUBLISHED)
def test_sizes_are_the_published_ones(name):
    with torch.device("meta"):
        model = build_model(name, 19).eval()
        deployed, fused = merged(model), fuse(model)
    train_form, with_aux, without_aux, macs, deployed_macs = PUBLISHED[name]
    assert count(model) == train_form
    assert count(deployed) == with_aux
    del deployed.aux_head
    assert count(deployed) == without_aux
    assert count(fused) == pytest.approx(without_aux, rel=0.001)
    assert multiply_adds(model) == pytest.approx(macs, abs=0.005)
    assert multiply_adds(deployed) == pytest.approx(deployed_macs, abs=0.005)
    assert multiply_adds(fused) == pytest.approx(deployed_macs, abs=0.005)
    for size, expected in zip(((720, 960), (512, 512)), SMALLER[name], strict=True):
        assert multiply_adds(fused, *size) == pytest.approx(expected, abs=0.005)


@pytest.mark.parametrize("name", PUBLISHED)
def test_deployed_form_has_one_convolution_per_block(name):
    with torch.device("meta"):
        model = build_model(name, 19).eval()
        fused = fuse(model)
    left = [n for n, m in fused.named_modules() if isinstance(m, nn.BatchNorm2d)]
    assert sorted(left) == sorted(NORMS_AFTER_FUSE)
    blocks = {n: m for n, m in model.named_modules() if isinstance(m, GCBlock)}
    *depths, identities = BLOCKS[name]
    assert len(blocks) == sum(map(sum, depths))
    assert sum(block.identity is not None for block in blocks.values()) == identities
    for block in blocks:
        convs = [m for m in fused.get_submodule(block).modules() if isinstance(m, nn.Conv2d)]
        assert [conv.kernel_size for conv in convs] == [(3, 3)]


@pytest.mark.parametrize("name", PUBLISHED)
def test_depths_strides_and_where_a_stack_ends_without_relu(name):
    model = small(name)
    (depth2, depth3), depths4, depths5, depths6, _ = BLOCKS[name]
    strides = [block.paths[0][0].conv.stride[0] for block in model.stem[2:]]
    assert strides == [1] * depth2 + [2] + [1] * (depth3 - 1)
    assert [conv.conv.stride for conv in model.stem[:2]] == [(2, 2)] * 2
    assert not any(conv.conv.bias is not None for conv in model.stem[:2])
    for depths, low, high in (
        (depths4, model.stage4.low, model.stage4.high),
        (depths5, model.stage5.low, model.stage5.high),
        (depths6, model.low6, model.high6),
    ):
        assert (len(low), len(high)) == depths
        assert [b.paths[2][0].conv.stride[0] for b in low] == [2] + [1] * (len(low) - 1)
        assert {b.paths[2][0].conv.stride[0] for b in high} == {1}
        for stack in (low, high):
            assert [b.act for b in stack] == [True] * (len(stack) - 1) + [False]
    convs = [m for b in model.modules() if isinstance(b, GCBlock) for m in b.modules()]
    assert all(m.bias is None and m.groups == 1 for m in convs if isinstance(m, nn.Conv2d))


def paths_written_out(block: GCBlock, x: torch.Tensor) -> torch.Tensor:
    """The block's formula from its tensors, path by path."""

    def normed(y, norm):
        scale = norm.weight / torch.sqrt(norm.running_var + 1e-5)
        shift = norm.bias - norm.running_mean * scale
        return y * scale[:, None, None] + shift[:, None, None]

    total, stride = 0, block.paths[0][0].conv.stride
    for padding, (first, second) in zip((1, 1, 0), block.paths, strict=True):
        y = F.conv2d(x, first.conv.weight, stride=stride, padding=padding)
        y = F.conv2d(normed(y, first.norm), second.conv.weight)
        total = total + normed(y, second.norm)
    if stride == (1, 1) and x.shape[1] == total.shape[1]:
        total = total + normed(x, block.identity)
    else:
        assert block.identity is None
    return total.clamp_min(0) if block.act else total


@pytest.mark.parametrize("act", [True, False])
@pytest.mark.parametrize(
    ("channels", "stride"), [((8, 8), 1), ((8, 8), 2), ((6, 10), 1), ((6, 10), 2)]
)
@torch.no_grad()
def test_block_and_its_fusion_equal_the_written_out_paths(channels, stride, act):
    block = trained(GCBlock(*channels, stride, act=act))
    x = torch.randn(2, channels[0], 9, 12, dtype=torch.float64)
    for dtype, relative in ((torch.float64, 1e-13), (torch.float32, 2e-6)):
        network, image = copy.deepcopy(block).to(dtype), x.to(dtype)
        expected = paths_written_out(copy.deepcopy(network).double(), image.double())
        limit = relative * expected.abs().max()
        before = {key: value.clone() for key, value in network.state_dict().items()}
        assert (network(image) - expected).abs().max() <= limit
        fused = network.fuse()
        assert (fused(image) - expected).abs().max() <= limit  # at the borders, too
        assert {p.dtype for p in fused.parameters()} == {dtype}
        assert isinstance(fused, nn.Sequential if act else nn.Conv2d)
        assert all(torch.equal(before[k], v) for k, v in network.state_dict().items())


@pytest.mark.parametrize(
    "path", [*(f"paths.{i}.{j}" for i in range(3) for j in (0, 1)), "identity"]
)
@torch.no_grad()
def test_every_path_counts(path):
    block = trained(GCBlock(8, 8, act=False))
    x = torch.randn(2, 8, 9, 12)
    before = block(x), block.fuse()(x)
    module = block.get_submodule(path)
    norm = module if isinstance(module, nn.BatchNorm2d) else module.norm
    norm.running_mean += 1
    after = block(x), block.fuse()(x)
    for old, new in zip(before, after, strict=True):
        assert (new - old).abs().max() > 0.01
    torch.testing.assert_close(after[1], after[0], rtol=1e-5, atol=1e-4)


@torch.no_grad()
def test_paths_are_added_before_they_are_rounded():
    block = trained(GCBlock(8, 8))
    exact = merge_paths(copy.deepcopy(block).double().paths, None).weight
    assert exact.dtype == torch.float64
    assert torch.equal(merge_paths(block.paths, None).weight, exact.float())


@pytest.mark.parametrize("name", PUBLISHED)
@torch.no_grad()
def test_fused_network_in_both_precisions(name):
    model, x = small(name), torch.randn(1, 3, 65, 97)
    for dtype, relative in ((torch.float64, 1e-10), (torch.float32, 1e-4)):
        model = model.to(dtype)
        before, after = model(x.to(dtype)), fuse(model)(x.to(dtype))
        assert (after - before).abs().max() <= relative * before.abs().max()


@torch.no_grad()
def test_network_against_its_formula():
    """What a branch receives is added to what it has after the ReLU."""
    model, x = small(), torch.randn(2, 3, 97, 130)
    y = model.stem(x)
    low, high = F.relu(model.stage4.low(y)), F.relu(model.stage4.high(y))
    low4 = low + model.stage4.down[0](high)
    high4 = high + bilinear(model.stage4.compress(low), high)
    low, high = (
        F.relu(model.stage5.low(F.relu(low4))),
        F.relu(model.stage5.high(F.relu(high4))),
    )
    first, second = model.stage5.down
    low5 = low + second(F.relu(first(high)))
    high5 = high + bilinear(model.stage5.compress(low), high)
    high6, low6 = model.high6(F.relu(high5)), model.low6(F.relu(low5))
    logits = model.head(high6 + bilinear(model.context(low6), high6))
    out = model.forward_train(x)
    assert logits.shape == (2, 3, 13, 17)
    torch.testing.assert_close(out.logits, logits, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(out.aux[0], model.aux_head(high4), rtol=1e-4, atol=1e-3)
    for signed in (high4, low4, high6, low6):
        assert signed.min() < 0 < signed.max()


@torch.no_grad()
def test_sums_of_signed_features_would_be_another_network():
    model, x = small(), torch.randn(1, 3, 96, 128)
    assert model.stage4.rectified and model.stage5.rectified
    assert all(block.act for block in model.stem[2:])
    other = copy.deepcopy(model)
    for stage in (other.stage4, other.stage5):
        stage.rectified = False
    expected = model(x)
    assert (other(x) - expected).abs().max() > 0.01 * expected.abs().max()


@pytest.mark.parametrize("size", [(201, 333), (1, 1), (1, 70), (33, 64)])
@torch.no_grad()
def test_any_size_passes(size):
    model, x = small(), torch.randn(1, 3, *size)
    expected = tuple(-(-side // 8) for side in size)
    out = model.forward_train(x)
    for logits in (out.logits, out.aux[0], fuse(model)(x)):
        assert logits.shape == (1, 3, *expected) and logits.isfinite().all()


def test_conventions_of_the_published_training():
    model = small()
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert {(norm.eps, norm.momentum) for norm in norms} == {(1e-5, 0.1)}
    assert not model.align_corners
    widths = {n: build(n).head.conv.conv.out_channels for n in PUBLISHED}
    assert widths == {"gcnet_s": 64, "gcnet_m": 128, "gcnet_l": 256}
    assert {build(n).context.scales[0].conv.out_channels for n in PUBLISHED} == {128}


def build(name: str) -> SegModel:
    with torch.device("meta"):
        return build_model(name, 19)


def test_initial_weights():
    torch.manual_seed(0)
    model = build_model("gcnet_s", 19)
    block = model.stage5.low[1]
    for path, kernel in zip(block.paths, (9, 9, 1), strict=True):
        first, second = (conv.conv.weight.std().item() for conv in path)
        assert first == pytest.approx((2 / (256 * kernel)) ** 0.5, rel=0.02)
        assert second == pytest.approx((2 / 256) ** 0.5, rel=0.02)
    assert model.head.classify.weight.std().item() == pytest.approx((2 / 19) ** 0.5, rel=0.05)
    assert model.aux_head.classify.weight.std().item() == pytest.approx((2 / 19) ** 0.5, rel=0.05)
    for norm in (m for m in model.modules() if isinstance(m, nn.BatchNorm2d)):
        assert norm.weight.eq(1).all() and not norm.bias.any()


@pytest.mark.parametrize(
    "blocks",
    [
        (4, 4, (5, 4), (5, 4)),
        (4, 4, (5, 4), (5, 4), (2, 2), (2, 2)),
        (4, 4, (5, 4), (5, 4), 2),
        (4, 4, (5, 4), (5, 4, 3), (2, 2)),
        (4, 4, (0, 4), (5, 4), (2, 2)),
        (4, 4, (5, 4), (5, 4), (2, 0)),
        (0, 4, (5, 4), (5, 4), (2, 2)),
        (4, 0, (5, 4), (5, 4), (2, 2)),
        (4, 3.5, (5, 4), (5, 4), (2, 2)),
        "4,4",
        (),
    ],
)
def test_bad_depths_are_refused(blocks):
    with pytest.raises(ValueError, match=r"blocks_per_stage is .*three pairs") as e:
        small(blocks_per_stage=blocks)
    assert "\n" not in str(e.value)


def test_depths_are_options():
    model = small(blocks_per_stage=[1, 2, [1, 2], [2, 1], [3, 1]])
    stages = model.stage4.low, model.stage4.high, model.stage5.low, model.stage5.high
    assert [len(s) for s in (model.stem, *stages)] == [5, 1, 2, 2, 1]
    assert (len(model.low6), len(model.high6)) == (3, 1)
    assert [b.act for b in gc_stage(4, 4, 1)] == [True]
    assert [b.act for b in gc_stage(4, 4, 2, last_act=False)] == [True, False]
    assert model(torch.randn(1, 3, 33, 70)).shape == (1, 3, 5, 9)


# Official files


def deployed(model: nn.Module, keys: list[str]) -> dict[str, torch.Tensor]:
    """The official deployed form: blocks folded, everything else as it is."""
    state, sources, folded = named(model, keys), rename_for(model, keys).sources, {}
    for name, module in model.named_modules():
        if isinstance(module, GCBlock):
            anchor, conv = sources[f"{name}.paths.0.0.conv.weight"], module.fuse()
            conv = conv[0] if isinstance(conv, nn.Sequential) else conv
            path = anchor.removesuffix("path_3x3_1.conv1.conv.weight")
            assert path != anchor
            folded |= {f"{path}reparam_3x3.{leaf}": p for leaf, p in conv.named_parameters()}
    rest = {k: v for k, v in state.items() if ".path_" not in k}
    return {k: v.detach() for k, v in (rest | folded).items()}


def official_keys(name: str) -> list[str]:
    """Those of GCNet-S; of GCNet-L their continuation to its depths."""
    keys = golden_keys("gcnet_s")
    if name != "gcnet_l":
        return keys
    number = {**{i: i for i in range(6)}, 6: 7, **{i: i + 1 for i in range(7, 10)}}
    renamed = []
    for key in keys:
        stem = key.split(".")
        if stem[1] == "stem":
            key = ".".join([*stem[:2], str(number[int(stem[2])]), *stem[3:]])
        renamed.append(key)
    copies = {
        "stem.5.": ("stem.6.",), "stem.10.": ("stem.11.",),
        "detail_branch_layers.0.3.": ("detail_branch_layers.0.4.",),
        "detail_branch_layers.1.3.": ("detail_branch_layers.1.4.",),
        "semantic_branch_layers.2.1.": ("semantic_branch_layers.2.2.",),
        "detail_branch_layers.2.1.": ("detail_branch_layers.2.2.",),
    }  # fmt: skip
    for theirs, more in copies.items():
        renamed += [k.replace(theirs, new) for new in more for k in renamed if theirs in k]
    return renamed


@pytest.mark.parametrize("name", PUBLISHED)
def test_official_keys_fill_every_tensor(name, save):
    keys = official_keys(name)
    assert len(set(keys)) == len(keys) == TENSORS[name]
    model, other = small(name), trained(small(name).apply(reset))
    state = named(model, keys)
    report = load_weights(other, save({"meta": {}, "state_dict": state}))
    rest = "tensors loaded, none dropped, none missing; its keys have GCNet names"
    assert report == f"{TENSORS[name]} {rest}"
    assert all(
        torch.equal(a, b)
        for a, b in zip(model.state_dict().values(), other.state_dict().values(), strict=True)
    )


def reset(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.normal_(module.weight)


@pytest.mark.parametrize("name", PUBLISHED)
@torch.no_grad()
def test_deployed_file_is_the_same_network(name, save):
    model, other = small(name), small(name).apply(reset)
    state = deployed(model, official_keys(name))
    assert len(state) == {"gcnet_l": 206}.get(name, 194)
    report = load_weights(other, save({"state_dict": state}))
    assert report.startswith(f"{len(state)} tensors loaded, none dropped, none missing")
    words = "constant (the deployed form has one path); its keys have deployed GCNet names"
    assert report.endswith(words)
    x = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    expected, aux = model.forward_train(x)[:2]
    assert expected.std() > 1e-3
    for network in (other, fuse(other)):
        assert (network(x) - expected).abs().max() < 1e-4 * expected.abs().max()
    assert (other.forward_train(x).aux[0] - aux[0]).abs().max() < 1e-4 * aux[0].abs().max()
    again = deployed(other, official_keys(name))  # folds to what was loaded
    for key, value in state.items():
        torch.testing.assert_close(again[key], value, rtol=1e-6, atol=0)
    first = next(key for key in state if key.endswith("reparam_3x3.bias"))
    refuse(other, save({k: v for k, v in state.items() if k != first}), "lacks .*norm.bias of gcn")
    mixed = state | {first.replace("reparam_3x3.bias", "path_3x3_1.conv1.conv.weight"): x}
    refuse(other, save(mixed), "path_3x3_1.conv1.conv.weight, which gcnet_. does not know")


def test_deployed_keys_are_the_official_ones(shared):
    fixture = json.loads((shared / "parity_gcnet/gcnet_s.json").read_text())
    own = deployed(build_model("gcnet_s", 19).eval(), golden_keys("gcnet_s"))
    stated = {key: tuple(shape) for key, shape in fixture["deploy"]["state_dict"]}
    assert {key: tuple(value.shape) for key, value in own.items()} == stated


def test_folded_blocks_are_the_official_ones(shared):
    path: Path = shared / "parity_gcnet/gcblock.json"
    fixture = read_fixture(path)
    state = fill(fixture, fixture.cases()[0])
    stored = {key: fixture.array(where) for key, where in fixture.data["deploy"]["values"].items()}
    blocks = {
        "s1": GCBlock(16, 16), "s1_noact": GCBlock(16, 16, act=False),
        "s1_widen": GCBlock(16, 32), "s2": GCBlock(16, 32, 2),
    }  # fmt: skip
    assert len(stored) == 2 * len(blocks)
    for name, block in blocks.items():
        own = block.eval().state_dict()
        keys = [key for key in state if key.startswith(f"{name}.")]
        assert len(keys) == len(own)
        for key in keys:
            ours = key.removeprefix(f"{name}.")
            for theirs, target in (
                ("path_3x3_1", "paths.0"), ("path_3x3_2", "paths.1"), ("path_1x1", "paths.2"),
                ("path_residual", "identity"), ("conv1.", "0."), ("conv2.", "1."), ("bn.", "norm."),
            ):  # fmt: skip
                ours = ours.replace(theirs, target)
            own[ours].copy_(torch.from_numpy(np.asarray(state[key])))
        conv = block.fuse()
        conv = conv[0] if isinstance(conv, nn.Sequential) else conv
        for leaf, value in conv.named_parameters():
            expected = stored[f"{name}.reparam_3x3.{leaf}"]
            gap = np.abs(value.detach().numpy() - expected).max()
            assert gap <= 1e-6 * np.abs(expected).max()


@pytest.mark.medium
@torch.no_grad()
def test_both_forms_export_with_a_free_batch():
    options = {"blocks_per_stage": (1, 1, (2, 2), (2, 2), (2, 2))}
    batch = torch.export.Dim("batch", min=1, max=8)
    x, y = torch.randn(2, 3, 65, 96), torch.randn(3, 3, 65, 96)
    for network in (small(**options), fuse(small(**options))):
        program = torch.export.export(network, (x,), dynamic_shapes=({0: batch},), strict=False)
        expected = network(y)
        assert (program.module()(y) - expected).abs().max() <= 1e-4 * expected.abs().max()
