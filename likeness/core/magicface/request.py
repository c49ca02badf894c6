"""What a user asks of MagicFace, as plain frozen data that both hosts fill and the core reads."""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any

import torch

from ..blocks import DEFAULT_LAYERS
from ..errors import bad_input
from .cache import ReferenceCache
from .record import Recorder

WEIGHTINGS = ("additive", "multiplicative", "none")
COMPLETIONS = ("paper", "code", "none")


@dataclass(frozen=True)
class Reference:
    """One concept picture.

    Attributes:
        name: the concept's word or phrase, for messages and previews.
        latent: clean latent in the model's scaled space, ``1 4 h w``.
        context: the host's own text conditioning for the reference's plain forward; opaque to the core.
        context_key: anything hashable that changes when ``context`` changes (a digest, or the prompt's text).
        positions: where the concept's tokens stand in the text context of the picture's prompt (all occurrences).
        mask: concept region in [0, 1], ``h w`` of any size (same framing as the picture); None is the whole picture.
        weight: w of section 3.2.4; 0 switches the reference off.
        region: where in the new picture the concept belongs, ``h w`` of any size in [0, 1]; None leaves that to the
            semantic map.
        batch_key: references whose latent size and ``batch_key`` agree share one forward (e.g. the context's length).
    """

    name: str
    latent: torch.Tensor
    context: Any
    context_key: Hashable
    positions: tuple[int, ...]
    mask: torch.Tensor | None = None
    weight: float = 3.0
    batch_key: Hashable = None
    region: torch.Tensor | None = None

    def __post_init__(self) -> None:
        where = f"MagicFace reference '{self.name}'"
        if self.latent.ndim != 4 or self.latent.shape[0] != 1:
            raise bad_input(f"{where}: latent", f"shape {tuple(self.latent.shape)}", "1 C h w", "Encode one picture.")
        if not bool(torch.isfinite(self.latent).all()):
            raise bad_input(
                f"{where}: latent",
                "NaN or infinite values",
                "finite numbers",
                "Run the VAE in fp32 or bf16, or check the picture.",
            )
        if not (math.isfinite(self.weight) and self.weight >= 0):
            raise bad_input(f"{where}: weight", self.weight, "a number of at least 0", "Use 3 to start with.")
        for name, plane in (("mask", self.mask), ("region", self.region)):
            if plane is not None and plane.ndim != 2:
                raise bad_input(f"{where}: {name}", f"shape {tuple(plane.shape)}", "height x width", "Give one mask.")


@dataclass(frozen=True)
class MapOptions:
    """How the latent semantic map is made (section 3.2.2).

    Attributes:
        factors: resolutions used, as shares of the side of the model's finest attention level: a half, a quarter and
            an eighth; 1 adds the finest itself (SD: 64 tokens a side at 512 pixels, SDXL: 64 at 1024).
        completion: ``"paper"`` (S C), ``"code"`` ((S + 3 S^2) / 4 C, as released) or ``"none"`` (C alone).
        ca_scale: factor on the non-concept tokens before the argmax; None is 0.9 for one concept and 0.6 for more.
        chunk: tokens of one text-encoder window; every window begins with a start token.
    """

    factors: tuple[int, ...] = (2, 4, 8)
    completion: str = "paper"
    ca_scale: float | None = None
    chunk: int = 77

    def __post_init__(self) -> None:
        if self.completion not in COMPLETIONS:
            raise bad_input("MagicFace: completion", repr(self.completion), f"one of {COMPLETIONS}", "Pick one.")
        if not self.factors:
            raise bad_input("MagicFace: map resolutions", "none", "some of 1, 2, 4, 8", "Choose at least one.")
        if self.ca_scale is not None and not 0 < self.ca_scale <= 1:
            raise bad_input("MagicFace: ca_scale", self.ca_scale, "above 0 and at most 1", "Leave it automatic.")


@dataclass(frozen=True)
class MagicFaceRequest:
    """Everything one MagicFace application is made of. It outlives sampling runs; run state never lives here.

    Attributes:
        references: the concept pictures; none of them is vanilla sampling, bit for bit.
        alpha: share of the steps with RSA before RBA takes over, in [0, 1] (section 3.2).
        layers: text for :meth:`UNetLayout.select`.
        weighting: ``"additive"`` (logits + w inside the mask, keys outside shut out), ``"multiplicative"`` (Eq. 2 and 6
            to the letter) or ``"none"`` (mask without weight).
        maps: semantic map options.
        scfg: whether the host is to combine guidance through :meth:`MagicFaceRun.guide`.
        noise_seed: seed of the references' noise, independent of the picture's seed.
        cache: reference K, V kept between steps and runs; put the same object into the next request to hit it.
        recorder: filled during a run for previews; None records nothing and costs nothing.
    """

    references: tuple[Reference, ...]
    alpha: float = 0.4
    layers: str = DEFAULT_LAYERS
    weighting: str = "additive"
    maps: MapOptions = field(default_factory=MapOptions)
    scfg: bool = False
    noise_seed: int = 0
    cache: ReferenceCache = field(default_factory=ReferenceCache)
    recorder: Recorder | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.alpha <= 1:
            raise bad_input("MagicFace: alpha", self.alpha, "a number in [0, 1]", "Use 0.4, as the paper does.")
        if self.weighting not in WEIGHTINGS:
            raise bad_input("MagicFace: weighting", repr(self.weighting), f"one of {WEIGHTINGS}", "Use 'additive'.")
