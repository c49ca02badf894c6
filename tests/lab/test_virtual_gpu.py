"""The virtual GPU: it computes what the CPU computes, refuses what CUDA refuses, and counts what waits."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
import torch.utils.checkpoint

from lab.virtual_gpu import DEVICE, move, on_cpu, virtual_gpu


def test_it_computes_what_the_cpu_computes_and_counts_launches():
    x = torch.randn(2, 4, 8)
    layer = torch.nn.Linear(8, 8)
    wanted = F.softmax(layer(x), dim=-1).transpose(1, 2)[:, 1:]
    with virtual_gpu() as log, torch.no_grad():
        there = move(layer)(x.to(DEVICE))
        log.clear()
        made = F.softmax(there, dim=-1).transpose(1, 2)[:, 1:]
        assert log.operations == {"aten._softmax.default": 1}, "views are no launches"
        assert made.device == DEVICE and made.is_cuda
        torch.testing.assert_close(on_cpu(made), wanted)
        assert log.syncs == 0
        torch.testing.assert_close(made.cpu(), wanted)
        assert log.syncs == 1


@pytest.mark.parametrize(
    "mix",
    [
        lambda x: x + torch.ones(3),
        lambda x: torch.cat([x, torch.ones(3)]),
        lambda x: torch.ones(3)[x.long()],
        lambda x: x.index_select(0, torch.tensor([0])),
        lambda x: F.scaled_dot_product_attention(*[x.view(1, 1, 3, 1)] * 2, torch.ones(1, 1, 3, 1)),
    ],
)
def test_mixing_devices_raises(mix):
    with virtual_gpu():
        x = torch.zeros(3, device=DEVICE)
        with pytest.raises(RuntimeError, match="virtual device"):
            mix(x)
        x + torch.tensor(1.0)  # a CPU scalar may


def fill_by_mask(x):
    x[x > 0] = 0.0


@pytest.mark.parametrize(
    "work, kinds",
    [
        (lambda x: x.sum().item(), ["read"]),
        (lambda x: bool((x > 0).any()), ["read"]),
        (lambda x: x.tolist(), ["read"]),
        (lambda x: (x > 0).nonzero(), ["read"]),
        (lambda x: x[x > 0], ["read"]),
        (fill_by_mask, []),
        (lambda x: x.unique(), ["read"]),
        (lambda x: torch.equal(x, x), ["read"]),
        (lambda x: x[[0, 2]], ["upload"]),
        (lambda x: x[torch.tensor([0, 2])], ["upload"]),
        (lambda x: torch.tensor([1.0], device=DEVICE), ["upload"]),
        (lambda x: x.new_tensor([1.0]), ["upload"]),
        (lambda x: torch.ones(3).to(DEVICE), ["upload"]),
        (lambda x: torch.ones(3).to(DEVICE, non_blocking=True), []),
        (lambda x: torch.empty(3).copy_(x), ["download"]),
        (lambda x: x[0:2].clone(), []),
        (lambda x: torch.arange(3, device=DEVICE), []),
        (lambda x: x[torch.arange(2, device=DEVICE)], []),
    ],
)
def test_what_the_cpu_waits_for(work, kinds):
    with virtual_gpu() as log:
        x = torch.randn(3).to(DEVICE)
        log.clear()
        work(x)
        assert [event.kind for event in log.waits] == kinds
        assert all(__file__ in event.frames[0] for event in log.waits)
        with log.paused():
            work(x)
        assert log.syncs == len(kinds)


def test_attention_counts_once_with_its_flops():
    q, k = torch.randn(1, 2, 5, 8), torch.randn(1, 2, 7, 8)
    wanted = F.scaled_dot_product_attention(q, k, k)
    with virtual_gpu() as log, torch.no_grad():
        q, k = q.to(DEVICE), k.to(DEVICE)
        log.clear()
        made = F.scaled_dot_product_attention(q, k, k)
        assert log.launches == 1 and log.attention[0].k == (1, 2, 7, 8) and not log.attention[0].masked
        assert log.flops == 2 * 2 * (2 * 5 * 7 * 8)
        torch.testing.assert_close(on_cpu(made), wanted)


def test_changes_in_place_stay_on_the_device():
    with virtual_gpu() as log:
        x = torch.zeros(3, device=DEVICE)
        x[1:] += 1
        assert isinstance(x.add_(1), type(x)) and log.syncs == 0
        assert x.tolist() == [1, 2, 2]


def test_inference_mode_is_followed():
    with virtual_gpu() as log:
        x = torch.zeros(3).to(DEVICE)
        with torch.inference_mode():
            assert not x.detach().is_inference() and x.clone().is_inference() and x.clone().detach().is_inference()
            log.clear()
            assert torch.zeros(3).to(device=DEVICE, dtype=torch.float16).device == DEVICE and log.syncs == 1
        (x[1:].requires_grad_() * 2).sum().backward()


def test_new_tensors_of_another_ones_shape():
    with virtual_gpu() as log:
        there = torch.ones_like(torch.zeros(3), device=DEVICE)
        here = torch.zeros_like(there, device="cpu")
        assert (there.device, here.device) == (DEVICE, torch.device("cpu"))
        assert log.operations == {"aten.ones_like.default": 1} and log.syncs == 0


def test_the_rest_of_the_process_goes_on_as_before():
    weight = torch.ones(3, requires_grad=True)
    out = torch.utils.checkpoint.checkpoint(torch.tanh, weight, use_reentrant=False)
    out.sum().backward()
    torch.testing.assert_close(weight.grad, 1 - torch.tanh(torch.ones(3)) ** 2)


# --- training ---------------------------------------------------------------------------------------------------------


class Block(torch.nn.Module):
    """Attention and a perceptron, ``1 2 5 8`` -> the mean square of what they make of it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.into, self.out = torch.nn.Linear(8, 24), torch.nn.Linear(8, 8)
        self.norm = torch.nn.LayerNorm(8)

    def look(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.into(self.norm(x)).chunk(3, dim=-1)
        return x + F.scaled_dot_product_attention(q, k, v, is_causal=True)

    def forward(self, x: torch.Tensor, recompute: bool = False) -> torch.Tensor:
        seen = torch.utils.checkpoint.checkpoint(self.look, x, use_reentrant=False) if recompute else self.look(x)
        return self.out(seen).square().mean()


@pytest.mark.parametrize("recompute", [False, True])
def test_training_is_the_cpus_and_counts_both_directions(recompute):
    x = torch.randn(1, 2, 5, 8)
    weights, gradients = [], []
    for device in (torch.device("cpu"), DEVICE):
        with virtual_gpu() as log:
            block = Block() if device.type == "cpu" else move(Block())
            optimiser = torch.optim.AdamW(block.parameters(), lr=1e-2)
            there = x.to(device)
            log.clear()
            for _ in range(3):
                loss = block(there, recompute)
                optimiser.zero_grad(set_to_none=True)
                loss.backward()
                optimiser.step()
            gradients.append([on_cpu(p.grad) for p in block.parameters()])
            weights.append([on_cpu(p.detach()) for p in block.parameters()])
            assert all(p.grad.device.type == device.type for p in block.parameters())
    torch.testing.assert_close(gradients[1], gradients[0])
    torch.testing.assert_close(weights[1], weights[0])
    assert log.operations["attention"] == (6 if recompute else 3) and log.operations["attention backward"] == 3
    assert log.syncs == 0


def test_mixing_devices_in_a_backward_pass_raises():
    with virtual_gpu():
        x = torch.ones(3).to(DEVICE).requires_grad_()
        doubled = x * 2
        doubled.register_hook(lambda gradient: gradient * torch.ones(3))
        with pytest.raises(RuntimeError, match="virtual device"):
            doubled.sum().backward()
        (x * 2).sum().backward()


def test_autocast_computes_in_the_lower_type():
    with virtual_gpu():
        layer, x = move(torch.nn.Linear(8, 8)), torch.randn(1, 2, 5, 8).to(DEVICE)
        with torch.autocast(DEVICE.type, torch.bfloat16):
            made = layer(x)
            attended = F.scaled_dot_product_attention(x, x, x)
            told = F.mse_loss(made, attended)
        assert (made.dtype, attended.dtype, told.dtype) == (torch.bfloat16, torch.bfloat16, torch.float32)
        told.backward()
        assert layer.weight.grad.dtype == torch.float32 and torch.isfinite(on_cpu(layer.weight.grad)).all()
