"""RTLinearFormer: both attentions against naive forms, their cost, half precision, deployment."""

import copy
import weakref
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from models import build_model, fuse
from models.linear_attention import EPS, ChannelAttention, CrossAttention, Scale, focus
from models.weights.rtlinearformer import EARLIER

NAMES = ["rtlinearformer_base", "rtlinearformer_slim"]
LAYOUTS = [torch.contiguous_format, torch.channels_last]


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """The tensors here are small: more threads would mostly wait for one another."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def narrow(num_classes: int = 5, **options) -> nn.Module:
    widths = {"attention_channels": 32, "head_channels": 32, "context_channels": 32}
    return build_model("rtlinearformer_slim", num_classes, base_channels=16, **widths, **options)


def randomise(model: nn.Module) -> nn.Module:
    """Eval mode with norms and temperatures that a mistake would show in."""
    for name, p in model.named_parameters():
        if name.endswith("temperature"):
            nn.init.uniform_(p, 0.5, 6.0)
    for m in model.modules():
        if isinstance(m, nn.BatchNorm2d):
            nn.init.uniform_(m.weight, 0.5, 1.5)
            nn.init.normal_(m.bias, std=0.3)
            m.running_mean.normal_(std=0.3)
            m.running_var.uniform_(0.5, 2.0)
    return model.eval()


def calibrate(model: nn.Module, batch: Tensor) -> nn.Module:
    """Eval mode with the batch's own statistics, so that activations have their usual size."""
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    for m in norms:
        m.momentum = None
    with torch.no_grad():
        model.train()(batch)
    for m in norms:
        m.momentum = 0.1
    return model.eval()


def make_channel() -> tuple[nn.Module, tuple[Tensor]]:
    module = ChannelAttention(24, 40, 32, head_dim=8, scales=(3, 5))
    return randomise(module), (torch.randn(2, 24, 6, 7),)


def make_cross() -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    module = CrossAttention(32, 24, head_dim=8)
    return randomise(module), (torch.randn(2, 32, 10, 9), torch.randn(2, 24, 5, 4))


def naive_focus(x: Tensor, power: float) -> Tensor:
    """One token (column) after another."""
    y = torch.zeros_like(x)
    for t in range(x.shape[1]):
        r = x[:, t].clamp_min(0)
        if r.any():
            y[:, t] = r**power * r.norm() / (r**power).norm()
    return y


def project(conv: nn.Module, tokens: Tensor, size: tuple[int, int]) -> Tensor:
    return conv.norm(conv.conv(tokens.unflatten(-1, size)))


def naive_channel(m: ChannelAttention, x: Tensor) -> Tensor:
    """One image, one scale and one head at a time, every normalisation on the tokens."""
    d, plain = m.head_dim, m.qkv(x)
    images = []
    for n in range(len(x)):
        outputs, head = [], 0
        for u in [plain, *(scale(plain) for scale in m.scales)]:
            q, k, v = u[n].flatten(1).chunk(3)
            for i in range(0, len(q), d):
                a, b = (F.normalize(naive_focus(t[i : i + d], m.power), dim=1) for t in (q, k))
                weights = torch.softmax(m.temperature[head] * torch.einsum("it,jt->ij", a, b), 1)
                outputs.append(torch.einsum("ij,jt->it", weights, v[i : i + d]))
                head += 1
        images.append(torch.cat(outputs))
    size = plain.shape[2:]
    return project(m.project, torch.stack(images), size)


def naive_cross(m: CrossAttention, high: Tensor, low: Tensor) -> Tensor:
    """The row-normalised matrix of all query-key pairs."""
    q = m.query(high).relu().flatten(2).unflatten(1, (m.heads, -1))
    k, v = (t.flatten(2).unflatten(1, (m.heads, -1)) for t in m.key_value(low).chunk(2, 1))
    k = k.relu()
    pairs = torch.einsum("nhdi,nhdj->nhij", q, k)
    tiny = EPS * k.sum((2, 3)) / k.shape[2]
    pairs = pairs / (pairs.sum(-1, keepdim=True) + tiny[..., None, None])
    out = torch.einsum("nhij,nhdj->nhdi", pairs, v).flatten(1, 2)
    return project(m.project, out, high.shape[2:])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("batch", [1, 2])
def test_channel_attention_equals_the_naive_form(layout, batch):
    module, (x,) = make_channel()
    x = x[:batch].contiguous(memory_format=layout)
    with torch.no_grad():
        expected = naive_channel(copy.deepcopy(module).double(), x.double())
        assert expected.std() > 0.1
        torch.testing.assert_close(module(x).double(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("batch", [1, 2])
def test_cross_attention_equals_the_quadratic_form(layout, batch):
    module, inputs = make_cross()
    inputs = [x[:batch].contiguous(memory_format=layout) for x in inputs]
    with torch.no_grad():
        expected = naive_cross(copy.deepcopy(module).double(), *(x.double() for x in inputs))
        assert expected.std() > 0.1
        torch.testing.assert_close(module(*inputs).double(), expected, rtol=1e-4, atol=1e-5)


def test_pooled_keys_stand_for_their_mean():
    module, (high, low) = make_cross()
    module.kv_pool_size = 2
    with torch.no_grad():
        pooled = module(high, low)
        module.kv_pool_size = 0
        torch.testing.assert_close(pooled, module(high, F.adaptive_avg_pool2d(low, 2)))
        assert (pooled - module(high, low)).abs().max() > 1e-3


@pytest.mark.parametrize("power", [1, 2, 3, 4.5])
def test_focus_keeps_the_norm_and_sharpens_the_direction(power):
    x = torch.randn(16, 50, dtype=torch.float64).relu()
    x[:, 7] = 0.0  # a token without an active channel
    y = focus(x, power)
    torch.testing.assert_close(y, naive_focus(x, power))
    torch.testing.assert_close(y.norm(dim=0), x.norm(dim=0))
    assert not y[:, 7].any()
    live = x.norm(dim=0) > 0
    share_before, share_after = (t.amax(0)[live] / t.norm(dim=0)[live] for t in (x, y))
    assert (share_after >= share_before - 1e-9).all()


def test_focus_has_a_finite_gradient_where_a_token_is_dead():
    x = torch.rand(16, 5, dtype=torch.float64)
    x[:, 2] = 0.0
    x[3] = 0.0
    x.requires_grad_()
    focus(x, 3).square().sum().backward()
    assert x.grad.isfinite().all()
    alive = torch.rand(2, 6, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda t: focus(t, 3), alive)


@pytest.mark.parametrize("size", [3, 5])
def test_a_folded_scale_equals_its_two_convolutions(size):
    width, groups = 24, 6
    scale = Scale(
        nn.Conv2d(width, width, size, padding=size // 2, groups=width, bias=False),
        nn.Conv2d(width, width, 1, groups=groups, bias=False),
    ).double()
    x = torch.randn(2, width, 7, 9, dtype=torch.float64)
    with torch.no_grad():
        expected, fused = scale(x), scale.fuse()
        assert isinstance(fused, nn.Conv2d) and fused.groups == groups
        torch.testing.assert_close(fused(x), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("options", [{}, EARLIER, {"fusion": "cat", "residual_relu": False}])
def test_the_deployed_form_is_exact(options):
    """In float64 and with norms that a mistake would show in, borders included."""
    model = randomise(narrow(**options)).double()
    x = torch.randn(2, 3, 96, 160, dtype=torch.float64)
    with torch.no_grad():
        expected, actual = model(x), fuse(model)(x)
    assert expected.std() > 1e-3
    assert (actual - expected).abs().max() < 1e-9 * expected.abs().max()


class Recorder(TorchDispatchMode):
    """Largest tensor and the peak of live bytes that the operations inside allocate."""

    def __init__(self) -> None:
        super().__init__()
        self.largest = self.live = self.peak = 0
        self.users: dict[int, int] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for t in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(t, Tensor):
                self.largest = max(self.largest, t.numel())
                self._track(t)
        return out

    def _track(self, t: Tensor) -> None:
        storage = t.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key not in self.users:
            self.users[key] = 0
            self.live += size
            self.peak = max(self.peak, self.live)
        self.users[key] += 1
        weakref.finalize(t, self._release, key, size)

    def _release(self, key: int, size: int) -> None:
        self.users[key] -= 1
        if not self.users[key]:
            del self.users[key]
            self.live -= size


def measure(module: nn.Module, *inputs: Tensor) -> tuple[int, int, int]:
    with torch.inference_mode(False), torch.no_grad():
        with FlopCounterMode(display=False) as flops:
            module(*inputs)
        with Recorder() as record:
            module(*inputs)
    return flops.get_total_flops(), record.peak, record.largest


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", ["channel", "cross"])
def test_cost_is_linear_in_the_tokens(kind, layout):
    def inputs(scale: int) -> list[Tensor]:
        sizes = [(128, 4, 8)] if kind == "channel" else [(64, 16, 32), (128, 4, 8)]
        grids = [(1, c, h * scale, w * scale) for c, h, w in sizes]
        return [torch.randn(g).contiguous(memory_format=layout) for g in grids]

    module = ChannelAttention(128, 128, 64) if kind == "channel" else CrossAttention(64, 128)
    module = fuse(nn.Sequential(module))[0]
    small, large = (measure(module, *inputs(scale)) for scale in (8, 16))
    assert large[0] <= 4.2 * small[0]
    assert large[1] <= 4.2 * small[1]
    tokens = [x.shape[2] * x.shape[3] for x in inputs(16)]
    assert large[2] < tokens[0] * tokens[-1] / 4


def test_the_recorder_sees_a_quadratic_tensor():
    module, inputs = make_cross()
    with torch.no_grad(), Recorder() as record:
        naive_cross(module, *inputs)
    assert record.largest >= 2 * module.heads * 90 * 20
    assert record.peak >= 4 * record.largest


def test_float16_survives_many_large_tokens():
    channel = ChannelAttention(8, 8, 16, head_dim=8).eval()
    cross = CrossAttention(16, 8, head_dim=8).eval()
    low, high = 500 * torch.randn(1, 8, 256, 512), 500 * torch.randn(1, 16, 256, 512)
    with torch.no_grad():
        for module, inputs in ((channel, (low,)), (cross, (high, low))):
            assert all(m.weight.abs().max() < 10 for m in module.modules() if hasattr(m, "weight"))
            expected = module(*inputs)
            half = copy.deepcopy(module).half()(*(x.half() for x in inputs)).float()
            assert half.isfinite().all()
            assert (half - expected).norm() < 0.02 * expected.norm()


def test_float16_survives_queries_and_keys_without_activity():
    module, (high, low) = make_cross()
    nn.init.constant_(module.query.norm.bias, 0.0)
    nn.init.constant_(module.query.norm.weight, 0.0)
    with torch.no_grad():
        assert module.half()(high.half(), low.half()).isfinite().all()


@pytest.fixture(scope="module")
def trained() -> tuple[nn.Module, list[float]]:
    """A narrow network after a few steps on coloured rectangles, and its losses."""
    torch.manual_seed(0)
    model = narrow().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    losses = []
    for _ in range(80):
        images, labels = rectangles(4)
        out = model.forward_train(images)
        loss = F.cross_entropy(model.upsample(out.logits, labels.shape[1:]), labels)
        loss = loss + 0.4 * F.cross_entropy(model.upsample(out.aux[0], labels.shape[1:]), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return calibrate(model, rectangles(8)[0]), losses


def rectangles(count: int) -> tuple[Tensor, Tensor]:
    """Images of noisy coloured blocks, N, 3, 64, 96, and the colour's number at each pixel."""
    colors = torch.tensor([[1, -1, 0], [-1, 1, 0], [0, -1, 1], [1, 1, -1], [-1, 0, -1.0]])
    labels = torch.randint(0, 5, (count, 2, 3)).repeat_interleave(32, 1).repeat_interleave(32, 2)
    images = colors[labels].permute(0, 3, 1, 2)
    return images + 0.3 * torch.randn(images.shape), labels


@pytest.mark.medium
def test_training_lowers_the_loss(trained):
    losses = trained[1]
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])


@pytest.mark.medium
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_half_precision_agrees_with_float32(trained, dtype, layout):
    model = trained[0].to(memory_format=layout)
    images = rectangles(4)[0].contiguous(memory_format=layout)
    with torch.no_grad():
        expected = model.upsample(model(images), (64, 96)).argmax(1)
        with torch.autocast("cpu", dtype=dtype):
            mixed = model(images)
        half = copy.deepcopy(model).to(dtype)(images.to(dtype))
        for logits in (mixed, half):
            assert logits.isfinite().all()
            same = model.upsample(logits.float(), (64, 96)).argmax(1) == expected
            assert same.float().mean() >= 0.995


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_gets_a_gradient(name):
    model = build_model(name, 7, drop_path=0.0).train()
    out = model.forward_train(torch.randn(2, 3, 97, 129))
    (out.logits.square().mean() + out.aux[0].square().mean()).backward()
    for key, p in model.named_parameters():
        assert p.grad is not None, key
        assert p.grad.isfinite().all(), key
        assert p.grad.any(), key


@pytest.mark.parametrize("size", [(97, 161), (360, 480), (720, 960)])
def test_any_size_passes(size):
    model = build_model("rtlinearformer_slim", 11).eval()
    with torch.no_grad():
        logits = model(torch.randn(1, 3, *size))
    assert logits.shape == (1, 11, -(-size[0] // 8), -(-size[1] // 8))
    assert model.upsample(logits, size).shape[2:] == size


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("batch", [1, 2])
def test_fused_equals_unfused(batch, layout):
    model = calibrate(narrow(), torch.randn(4, 3, 128, 160))
    randomise(model.block4.low_attention)
    x = torch.randn(batch, 3, 128, 160).contiguous(memory_format=layout)
    fused = fuse(model)
    with torch.no_grad():
        expected, actual = model(x), fused(x)
    assert (actual - expected).abs().max() < 1e-4 * expected.abs().max()
    assert not any(isinstance(m, nn.BatchNorm2d) for m in fused.modules())


@pytest.mark.parametrize(
    ("name", "train_params", "params", "gmacs"),
    [
        ("rtlinearformer_base", 9_514_502, 9_364_083, 99.28),
        ("rtlinearformer_slim", 2_942_870, 2_904_515, 26.08),
    ],
)
def test_size_and_cost_at_1024x2048(name, train_params, params, gmacs):
    with torch.device("meta"):
        model = build_model(name, 19).eval()
    assert sum(p.numel() for p in model.parameters()) == train_params
    deployed = [p for n, p in model.named_parameters() if not n.startswith("aux_head.")]
    assert sum(p.numel() for p in deployed) == params
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.empty(1, 3, 1024, 2048, device="meta"))
    assert counter.get_total_flops() / 2e9 == pytest.approx(gmacs, abs=0.01)


@pytest.mark.medium
@pytest.mark.parametrize("layout", LAYOUTS)
def test_exports(layout):
    model = fuse(calibrate(narrow(), torch.randn(4, 3, 128, 160)))
    x = torch.randn(1, 3, 64, 96).contiguous(memory_format=layout)
    program = torch.export.export(model, (x,))
    assert not any("autocast" in str(node.target) for node in program.graph.nodes)
    with torch.no_grad():
        torch.testing.assert_close(program.module()(x), model(x))


@pytest.mark.medium
def test_exports_with_dynamic_size_and_batch():
    model = calibrate(narrow(), torch.randn(4, 3, 128, 160))
    dims = {0: torch.export.Dim.AUTO, 2: torch.export.Dim.AUTO, 3: torch.export.Dim.AUTO}
    example = torch.randn(2, 3, 320, 512)  # every pool of the context module has several outputs
    program = torch.export.export(fuse(model), (example,), dynamic_shapes=(dims,))
    x = torch.randn(3, 3, 512, 320)
    with torch.no_grad():
        torch.testing.assert_close(program.module()(x), model(x), rtol=1e-3, atol=1e-4)
