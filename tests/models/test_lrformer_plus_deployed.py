"""LRFormer+ where networks are scored, timed and deployed: as any other."""

import importlib
import json

import pytest
import torch
from networks import trained
from query_networks import NARROW, SHALLOW
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from models import SegModel, build_model, fuse
from utils import runtimes
from utils.deploy import prepare_for_inference
from utils.inference import predict_logits

SIZE = (64, 96)
OPTIONS = NARROW | SHALLOW | {"encoder_layers": 1, "decoder_layers": 3}


@pytest.fixture(scope="module")
def network() -> SegModel:
    """A narrow network in eval mode."""
    pytest.importorskip("transformers", reason="needs pip install -e .[query]")
    return trained(build_model("lrformer_t_plus", 7, **OPTIONS))


def image(*size: int) -> Tensor:
    return torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(1))


def slow(runtime: str):
    return pytest.param(runtime, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    "runtime", ["eager", slow("compiled"), slow("onnxruntime"), slow("openvino")]
)
def test_every_runtime_gives_the_networks_numbers(network, runtime):
    for package in runtimes.PACKAGES.get(runtime, ()):
        pytest.importorskip(package, reason=f"needs {package}")
    if runtime == "compiled" and not runtimes.can_compile(torch.device("cpu")):
        pytest.skip("there is no C++ compiler")
    prepared, told = prepare_for_inference(fuse(network), device="cpu", size=SIZE, runtime=runtime)
    with torch.inference_mode():
        expected = network(image(*SIZE))
    found = prepared(image(*SIZE))
    assert told.runtime == runtime and not told.remarks
    # Sums in another order; an attention mask is a threshold, so a pixel may change sides.
    assert (found - expected).norm() <= 1e-4 * expected.norm()
    agree = prepared.giving("classes")(image(*SIZE)) == expected.argmax(1)
    assert agree.float().mean() > 0.999


def test_bfloat16_through_the_door(network):
    prepared, told = prepare_for_inference(
        network, device="cpu", precision="bf16", size=SIZE, runtime="eager"
    )
    with torch.inference_mode():
        expected = network(image(*SIZE)).argmax(1)
    classes = prepared.giving("classes")(image(*SIZE))
    assert told.precision == "bf16" and (classes == expected).float().mean() > 0.95


class Operations(TorchDispatchMode):
    """The names of all that is computed."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, operation, types, arguments=(), keywords=None):
        self.names.add(operation.overloadpacket.__name__)
        return operation(*arguments, **(keywords or {}))


@pytest.mark.parametrize("training", [False, True])
def test_a_pass_neither_asks_the_device_nor_sends_it_numbers(network, training):
    """Else it could not be recorded as a CUDA graph, and the host would wait in every step."""
    model = network.train(training)
    x = image(*SIZE)
    with torch.no_grad(), Operations() as seen:
        model.forward_train(x)
    network.eval()
    assert {"convolution", "grid_sampler_2d", "native_group_norm"} <= seen.names
    # tensors of Python's numbers; numbers of tensors; results of a size that only values tell
    assert not seen.names & {"lift_fresh", "_local_scalar_dense", "nonzero", "index"}


@pytest.mark.parametrize("size", [(64, 96), (59, 40)])
@torch.no_grad()
def test_the_pixel_decoder_is_the_librarys(network, size):
    features = network.backbone(image(*size))[1:]
    theirs = network.head.pixel_decoder(list(features), return_dict=True)
    levels, finest = network.head.pixels(features)
    for mine, other in zip(
        (*levels, finest), (*theirs.multi_scale_features, theirs.mask_features), strict=True
    ):
        assert torch.equal(mine, other)


@torch.no_grad()
def test_scored_images_are_padded_as_published(network):
    x = image(59, 40)
    padded = torch.nn.functional.pad(x, (0, 24, 0, 5))  # mean colour, up to multiples of 32
    assert torch.equal(predict_logits(network, x, pad=True), network(padded)[..., :59, :40])
    assert torch.equal(predict_logits(network, x), network(x))
    views = predict_logits(network, x, flip=True, scales=(1.0, 1.5), pad=True)
    assert views.shape == (1, 7, 59, 40) and views.isfinite().all()


def test_the_speed_script_times_it(network, tmp_path, monkeypatch):
    speed = importlib.import_module("models.speed.speed")
    small = {name: network for name in ("lrformer_t_plus",)}
    monkeypatch.setattr(speed, "build", lambda args, names: {n: small[n] for n in names})
    out = tmp_path / "times.json"
    words = "--a lrformer_t_plus --c 7 --r 64 96 --seconds 0.05 --device cpu --form published eager"
    assert speed.main([*words.split(), "--out", str(out)]) == 0
    record = json.loads(out.read_text())
    facts = record["networks"]["lrformer_t_plus"]
    assert facts["stride"] == 1 and facts["macs_per_image"] > 0
    ends = {line.split()[-1] for line in record["lines"]}
    assert ends == {"logits", "resized", "classes", "frame"}
