"""Optimisers and the learning rate as a function of how much of a run lies behind."""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from .errors import InputError


def learning_rate(
    share: float,
    *,
    base_lr: float,
    end_lr: float = 0.0,
    kind: str = "poly",
    power: float = 0.9,
    warmup: float = 0.0,
    warmup_lr: float = 0.0,
) -> float:
    """Linear warm-up, then a decay that reaches `end_lr` at the end of the run.

    Args:
        share: of the whole run that lies behind, warm-up included, 0..1.
        kind: "poly", the remaining share to the power of `power`, or "cosine", half a wave.
        warmup: share of the run; from 1 on there is nothing else.
    """
    if share < warmup:
        return warmup_lr + (base_lr - warmup_lr) * share / warmup
    left = min(1.0, max(0.0, (1 - share) / (1 - warmup))) if warmup < 1 else 0.0
    if kind == "cosine":
        height = (1 - math.cos(math.pi * left)) / 2
    elif kind == "poly":
        height = left**power
    else:
        raise InputError(f"schedule {kind!r} is unknown; accepted: poly, cosine")
    return end_lr + (base_lr - end_lr) * height


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Give every parameter group `lr` times its own multiplier."""
    for group in optimizer.param_groups:
        scaled = lr * group["lr_scale"]
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(scaled)
        else:
            group["lr"] = scaled


def steps_by_itself(device: torch.device) -> bool:
    """Whether optimisers on `device` leave a step out by their own `found_inf`, unseen by the host.

    Their learning rate is then a tensor on the GPU, so that a captured step can change it.
    """
    return device.type in ("cpu", "cuda")


def _is_in(key: str, name: str) -> bool:
    """Whether a parameter is called `name`, or lies in a submodule of that name."""
    return f"{key}.".startswith(f"{name}.")


def build_optimizer(
    model: nn.Module,
    name: str,
    *,
    lr: float,
    weight_decay: float,
    momentum: float = 0.9,
    decay_norms: bool = True,
    lr_multipliers: Mapping[str, float] | None = None,
    no_decay: Sequence[str] = (),
) -> torch.optim.Optimizer:
    """SGD or AdamW over the parameters of `model`.

    Args:
        name: "sgd" or "adamw".
        decay_norms: False exempts biases and norm parameters (one dimension) from the decay.
        lr_multipliers: submodule prefix -> factor on the learning rate (and, in AdamW, thereby
            on the decay step).
        no_decay: names of parameters, or of submodules that hold them, which never decay.
    """
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for key, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        scale = next((f for name, f in (lr_multipliers or {}).items() if _is_in(key, name)), 1.0)
        decays = decay_norms or parameter.ndim > 1
        decays = decays and not any(_is_in(key, name) for name in no_decay)
        groups.setdefault((scale, decays), []).append(parameter)
    params = [
        {
            "params": parameters,
            "lr": lr * scale,
            "lr_scale": scale,
            "weight_decay": weight_decay if decay else 0.0,
        }
        for (scale, decay), parameters in groups.items()
    ]
    device = next(model.parameters()).device
    fused = steps_by_itself(device) or None
    if device.type == "cuda":
        for group in params:
            group["lr"] = torch.tensor(group["lr"], device=device)
    if name == "sgd":
        optimizer = torch.optim.SGD(params, lr=lr, momentum=momentum, fused=fused)
        if momentum and fused:  # without a buffer the first step would not know how to be left out
            for parameter in (p for group in params for p in group["params"]):
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        return optimizer
    if name == "adamw":
        return torch.optim.AdamW(params, lr=lr, fused=fused, capturable=device.type == "cuda")
    raise InputError(f"optimizer {name!r} is unknown; accepted: sgd, adamw")
