"""Several processes on the CPU compute what one computes with the whole batch."""

import socket
from contextlib import closing

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F

from models import build_model
from utils.distributed import World, check_gpus, init_world, sum_over_processes, synchronise_norms
from utils.engine import TrainForm


def free_port():
    with closing(socket.socket()) as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def step(rank, size):
    """Loss, gradients and buffers of one float64 step on this process's share of 4 images."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = build_model("pidnet_s", 3, base_channels=4, context_channels=4, head_channels=4)
    model = model.double().train()
    images = torch.randn(4, 3, 64, 64, dtype=torch.float64)
    labels = torch.randint(0, 3, (4, 8, 8))
    form = TrainForm(model)
    if size > 1:
        synchronise_norms(model, World(rank, size, torch.device("cpu")))
        form = torch.nn.parallel.DistributedDataParallel(form)
    share = slice(rank * 4 // size, (rank + 1) * 4 // size)
    outputs = form(images[share])
    loss = F.cross_entropy(outputs.logits, labels[share]) + outputs.boundary.square().mean()
    loss = loss + F.cross_entropy(outputs.aux[0], labels[share])
    loss.backward()
    world = World(rank, size, torch.device("cpu"))
    loss = sum_over_processes(loss.detach().clone(), world) / size
    gradients = {name: p.grad for name, p in model.named_parameters()}
    return loss, gradients, dict(model.named_buffers())


def work(rank, port, path):
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    result = step(rank, 2)
    if rank == 0:
        torch.save(result, path)
    dist.destroy_process_group()


def test_two_processes_have_the_loss_gradients_and_statistics_of_one(tmp_path):
    path = tmp_path / "result.pt"
    torch.multiprocessing.start_processes(work, (free_port(), path), nprocs=2, start_method="spawn")
    loss, gradients, buffers = step(0, 1)
    loss2, gradients2, buffers2 = torch.load(path, weights_only=True)
    torch.testing.assert_close(loss2, loss, rtol=1e-12, atol=0)
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradients2[name], gradient, rtol=1e-7, atol=1e-12, msg=name)
    for name, buffer in buffers.items():
        torch.testing.assert_close(buffers2[name], buffer, rtol=1e-9, atol=1e-12, msg=name)


def test_gpus_that_are_not_there_are_named():
    check_gpus(())
    count = torch.cuda.device_count()
    with pytest.raises(ValueError, match=f"GPUS .*no CUDA device {count}"):
        check_gpus((count,))


def test_a_single_process_needs_no_group(monkeypatch):
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    world = init_world(())
    assert (world.rank, world.size, world.is_main) == (0, 1, True)
    assert not dist.is_initialized()
    values = torch.tensor([1.0, 2.0])
    assert sum_over_processes(values, world).tolist() == [1.0, 2.0]
