"""ComfyUI's models on the virtual GPU (:mod:`lab.virtual_gpu`): what a step of sampling asks of the device."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import comfy.model_management as management
import comfy.sample
import comfy.samplers
import pytest
import torch
from support.comfy import tiny

from lab.virtual_gpu import DEVICE, Log, move, virtual_gpu

ROOM = 10**12


@contextlib.contextmanager
def host_on_virtual_gpu() -> Iterator[Log]:
    """While the context is open the host has the virtual GPU, with room for everything and models that stay there."""
    with pytest.MonkeyPatch.context() as patch, virtual_gpu() as log, torch.no_grad():
        patch.setattr(management, "load_models_gpu", lambda *_, **__: None)
        patch.setattr(
            management, "get_free_memory", lambda _=None, torch_free_too=False: (ROOM, ROOM) if torch_free_too else ROOM
        )
        yield log


@contextlib.contextmanager
def card(room: int) -> Iterator[Log]:
    """While the context is open the host manages the virtual GPU's memory itself, a card of ``room`` bytes.

    Nothing of it is kept for other programs; what models take there is counted, what they compute is not.
    """

    def free(_: Any = None, torch_free_too: bool = False) -> Any:
        left = room - sum(loaded.model_loaded_memory() for loaded in on_card())
        return (left, left) if torch_free_too else left

    with pytest.MonkeyPatch.context() as patch, virtual_gpu() as log:
        patch.setattr(management, "current_loaded_models", [])
        patch.setattr(management, "vram_state", management.VRAMState.NORMAL_VRAM)
        patch.setattr(management, "minimum_inference_memory", lambda: 0)
        patch.setattr(management, "extra_reserved_memory", lambda: 0)
        patch.setattr(management, "get_free_memory", free)
        yield log


def on_card() -> list[Any]:
    """What the host has loaded on the virtual GPU."""
    loaded = management.current_loaded_models
    return [one for one in loaded if one.device == DEVICE and one.model is not None]


def for_card(patcher: Any) -> Any:
    """A patcher whose model the host brings to the virtual GPU when it is wanted, in place."""
    patcher.detach()
    patcher.load_device = DEVICE
    return patcher


def on_virtual_gpu(patcher: Any) -> Any:
    """A ``MODEL`` moved there, in place, its UNet in half precision."""
    unet = patcher.model.diffusion_model
    unet.to(torch.float16)
    unet.dtype = torch.float16
    move(patcher.model)
    patcher.load_device = patcher.model.device = DEVICE
    return patcher


@dataclass
class Steps:
    """Launches, waits and their places of every step of a run, the first step first."""

    launches: list[int] = field(default_factory=list)
    syncs: list[int] = field(default_factory=list)
    places: list[Any] = field(default_factory=list)
    operations: list[Any] = field(default_factory=list)


def counted(log: Log, patcher: Any, positive: list, negative: list, *, steps: int) -> Steps:
    """Sample with Euler steps and count each of them."""
    found = Steps()

    def step(*_: Any) -> None:
        found.launches.append(log.launches)
        found.syncs.append(log.syncs)
        found.places.append(log.places())
        found.operations.append(log.operations.copy())
        log.clear()

    with _first_call(log):
        sampled(patcher, positive, negative, steps=steps, callback=step)
    return found


def sampled(
    patcher: Any,
    positive: list,
    negative: list,
    *,
    steps: int,
    cfg: float = 5.0,
    callback: Callable | None = None,
    latent: torch.Tensor | None = None,
    denoise: float = 1.0,
) -> torch.Tensor:
    """Latents of a run of Euler steps; with ``latent`` the last part of a run, ``denoise`` of it."""
    start = tiny.noise() if latent is None else tiny.noise(latent.shape[-2:])
    levels = patcher.get_model_object("model_sampling")
    sigmas = comfy.samplers.calculate_sigmas(levels, "simple", round(steps / denoise)).cpu()[-steps - 1 :]
    return comfy.sample.sample_custom(
        patcher, start, cfg, comfy.samplers.sampler_object("euler"), sigmas, positive, negative,
        torch.zeros_like(start) if latent is None else latent, disable_pbar=True, callback=callback,
    )  # fmt: skip


@contextlib.contextmanager
def _first_call(log: Log) -> Iterator[None]:
    """Count from the first model call on: what comes before it belongs to no step."""
    sample: Callable = comfy.samplers.KSAMPLER.sample

    def begin(*args: Any, **kwargs: Any) -> Any:
        log.clear()
        return sample(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(comfy.samplers.KSAMPLER, "sample", begin)
        yield
