"""The door to inference on CUDA gives what the plain network gives, and its kernels run."""

from typing import Any

import torch
import torch.nn.functional as F
from common import Part, require_cuda

from models import build_model, fuse, list_models
from utils import fused_convolutions
from utils.class_map import class_map, class_map_in_strips, has_triton
from utils.deploy import DTYPES, prepare_for_inference
from utils.distributed import set_tf32

SMALL = ("pidnet_s", "rtlinearformer_slim")
# Share of pixels whose class may differ from that of the eager network in the same precision: other
# kernels round otherwise, and untrained networks hardly prefer one class to another.
CLASSES = {"fp32": 1e-3, "bf16": 0.03, "fp16": 0.01}
# Logits over the largest one: half precision keeps 11 (fp16) or 8 (bf16) bits, and every one of
# up to a hundred layers rounds.
LOGITS = {"fp32": 1e-3, "bf16": 0.1, "fp16": 0.02}


def run(part: Part) -> None:
    """Kernels first, then every network."""
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        part.case(f"class map, {dtype}", kernel, dtype, part.device)
        part.case(f"convolution and ReLU, {dtype}", convolutions, dtype, part.device)
    for name in SMALL if part.tiny else list_models():
        for precision in ("fp32",) if part.tiny else ("fp16", "fp32", "bf16"):
            part.case(f"{name}, {precision}", network, name, precision, part.device)


def kernel(dtype: torch.dtype, device: torch.device) -> dict[str, Any]:
    """The class map by whatever computes it here, beside strips and full-size logits."""
    torch.manual_seed(0)
    told = {"triton": device.type == "cuda" and has_triton(device)}
    for shape, size, aligned in (
        ((1, 19, 128, 256), (1024, 2048), False),
        ((2, 11, 45, 60), (360, 480), False),
        ((1, 150, 33, 17), (257, 131), True),
        ((1, 2, 1, 1), (5, 6), False),
    ):
        logits = torch.randn(shape, device=device).to(dtype)
        wide = F.interpolate(logits.float(), size, mode="bilinear", align_corners=aligned)
        first, second = wide.topk(2, 1)[0].unbind(1)
        clear = first - second > (1e-4 if dtype == torch.float32 else 0.05)
        expected = wide.argmax(1)
        for layout in (torch.contiguous_format, torch.channels_last):
            given = logits.to(memory_format=layout)
            found = class_map(given, size, align_corners=aligned)
            strips = class_map_in_strips(given, size, aligned)
            assert found.dtype == torch.uint8 and found.shape == expected.shape
            assert not ((found != expected) & clear).any(), (shape, layout)
            assert not ((strips != expected) & clear).any(), (shape, layout)
    return told


def convolutions(dtype: torch.dtype, device: torch.device) -> dict[str, Any]:
    """Whether cuDNN has the kernels that do bias, residual and ReLU along, and what they give."""
    require_cuda(device, "cuDNN")
    set_tf32(False)
    torch.manual_seed(0)
    told = {}
    for channels, kernel_size, stride in ((64, 3, 1), (64, 3, 2), (128, 1, 1), (20, 5, 1)):
        x = torch.randn(1, channels, 64, 96, device=device).to(
            dtype, memory_format=torch.channels_last
        )
        weight = torch.randn(channels, channels, kernel_size, kernel_size, device=device).to(dtype)
        weight = (weight * 0.05).contiguous(memory_format=torch.channels_last)
        bias = torch.randn(channels, device=device).to(dtype)
        plain = ([stride] * 2, [kernel_size // 2] * 2, [1, 1], 1)
        y = F.conv2d(x.float(), weight.float(), bias.float(), *plain)
        residual = torch.randn_like(y).to(dtype)
        for z in (None, residual):
            expected = F.relu(y if z is None else y + z.float())
            torch.full_like(
                y, float("nan"), dtype=dtype
            )  # what the result's memory may hold before
            found = fused_convolutions.convolution_relu(x, weight, bias, *plain, z)
            error = float((found.float() - expected).abs().max() / expected.abs().max())
            told[f"{channels} {kernel_size} {stride} {z is not None}"] = error
            assert error <= (1e-5 if dtype == torch.float32 else 0.02), told
    told["without a kernel"] = len(fused_convolutions.refused)
    return told


def network(name: str, precision: str, device: torch.device) -> dict[str, Any]:
    """Logits and classes of the runtime that is chosen here, beside the eager network."""
    set_tf32(False)
    torch.backends.cudnn.benchmark = False
    torch.manual_seed(0)
    fused, size = fuse(build_model(name, 19)), (256, 512)
    image = torch.randn(1, 3, *size, device=device)
    eager = prepare_for_inference(fused, device=device, precision=precision, runtime="eager")[0]
    runtime = "torch" if device.type == "cuda" else "eager"  # compiling takes too long here
    told: dict[str, Any] = {}
    expected = eager(image).float()
    for output in ("logits", "classes"):
        run, deployment = prepare_for_inference(
            fused, device=device, precision=precision, size=size, output=output, runtime=runtime
        )
        told[output] = str(deployment)
        for _ in range(3):  # a replay must not depend on those before it
            run(torch.randn_like(image))
            result = run(image)
        again = run(image)
        assert torch.equal(result, again)
        if output == "logits":
            assert result.dtype == DTYPES[precision]
            told["error"] = float((result.float() - expected).abs().max() / expected.abs().max())
        else:
            classes = fused.upsample(expected, size).argmax(1)
            told["other classes"] = float((result != classes).float().mean())
    assert told["error"] <= LOGITS[precision], told
    assert told["other classes"] <= CLASSES[precision], told
    return told
