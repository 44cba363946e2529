"""What a network can run on here."""

import os

import torch

from .errors import InputError


def has_mps() -> bool:
    """Whether PyTorch can use a Mac's GPU, and nobody hides GPUs by CUDA_VISIBLE_DEVICES=."""
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
    return not hidden and torch.backends.mps.is_available()


def choose_device(index: int, *, cuda: bool, mps: bool, processes: int = 1) -> torch.device:
    """CUDA device `index` where there is CUDA, else a Mac's GPU, else the CPU.

    A Mac has one GPU: several processes, which torchrun starts, compute on the CPU there.
    """
    if cuda:
        return torch.device("cuda", index)
    return torch.device("mps" if mps and processes == 1 else "cpu")


def named_device(name: str) -> torch.device:
    """The device called "cpu", "cuda", "cuda:1" or "mps"; "auto" is the one that is fastest.

    Raises ValueError for another name, and where this machine has no such device.
    """
    if name == "auto":
        return choose_device(0, cuda=torch.cuda.is_available(), mps=has_mps())
    there = {
        "cpu": True,
        "mps": has_mps(),
        **{f"cuda:{index}": True for index in range(torch.cuda.device_count())},
    }
    if there.get("cuda:0" if name == "cuda" else name):
        return torch.device(name)
    accepted = ", ".join(["auto", *(known for known in there if there[known])])
    raise InputError(f"device {name!r} is not on this machine; accepted: {accepted}")
