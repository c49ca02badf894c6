"""What a persona training is asked for, and what it asks of a host."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from ...core.errors import bad_input
from ...core.persona.mapper import MapperConfig
from ...core.persona.stages import Stages
from ...core.persona.tandem import TandemConfig
from ...core.persona.text import Layout, TextEncoder, Tokenizer
from .photos import Photo

STAGE_MODES = ("fixed", "iou")
PRECISIONS = ("fp32", "bf16")


@dataclass(frozen=True)
class PersonaTraining:
    """One training run; saved with the persona.

    Defaults are the released code's, made correct for batches (see each field).
    """

    supercategory: str = "face"  # any word; it conditions the stages in which the persona is silent
    subtokens: str = "mean"  # a word of several tokens: mean of their embeddings, or the first one
    style: bool = False  # learn a manner instead of a thing: other templates
    tokens: int = 4  # words per persona; the paper writes one
    steps: int = 1000
    batch: int = 2  # true batch; the released code accumulates 2 x 1
    learning_rate: float = 1e-4  # the paper prints 5e-5
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.999)
    stages: str = "fixed"  # or "iou": bounds from attention after a warm-up
    low: int = 400  # fixed bounds, and the fallback of "iou"
    high: int = 800
    late: str = "held"  # the last dynamic words, or "supercategory"
    lambda1: float = 0.7
    lambda2: float = 0.8
    warmup: int = 200  # steps over all timesteps before IoU is measured; those weights are dropped afterwards
    calibrated: bool = True  # bring the IoU curve to the paper's range before comparing with the lambdas
    tandem: TandemConfig = field(default_factory=TandemConfig)
    identity: float = 0.0  # weight of the identity loss; 0 needs no face model
    identity_below: int = 600  # above this timestep the estimate is too blurred to judge, nothing is decoded
    image_width: int = 512  # length of the image embedding; 0: no residual branch
    residual_dropout: float = 0.5
    combination: str = "offset"  # or "concat"
    head_gain: float = 1.0
    seed: int = 0
    precision: str = "fp32"  # or bf16 autocast; the mapper stays fp32
    checkpointing: bool = False
    templates: tuple[str, ...] = ()  # empty: this pack's own
    tandem_prompts: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        wrong = [
            (self.steps < 1 or self.batch < 1, "steps, batch", f"{self.steps}, {self.batch}", "at least 1"),
            (self.stages not in STAGE_MODES, "stages", self.stages, f"one of {STAGE_MODES}"),
            (self.precision not in PRECISIONS, "precision", self.precision, f"one of {PRECISIONS}"),
            (not self.supercategory.strip(), "supercategory", "an empty word", "a word such as face"),
            (not math.isfinite(self.learning_rate), "learning rate", self.learning_rate, "a number"),
        ]
        for failed, name, came, expected in wrong:
            if failed:
                raise bad_input(f"Persona Train: {name}", came, expected, "Correct the value.")
        Stages(self.low, self.high, self.late)

    def to_dict(self) -> dict:
        """Plain JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict) -> PersonaTraining:
        """Inverse of :meth:`to_dict`."""
        tuples = {k: tuple(v) for k, v in values.items() if isinstance(v, list)}
        return cls(**{**values, **tuples, "tandem": TandemConfig(**values["tandem"])})

    def mapper_config(self, widths: tuple[int, ...], bounds: tuple[int, int]) -> MapperConfig:
        """The mapper of this run."""
        return MapperConfig(
            widths=widths,
            tokens=self.tokens,
            bounds=bounds,
            image_width=self.image_width,
            combination=self.combination,
            residual_dropout=self.residual_dropout,
            head_gain=self.head_gain,
        )


class Denoiser(Protocol):
    """The frozen UNet, while the host is open."""

    def __call__(self, noisy: Tensor, timesteps: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """``B 4 h w`` (VP), ``B``, two ``B L C`` -> predicted noise ``B 4 h w``."""

    def maps(self, noisy: Tensor, timesteps: Tensor, key: Tensor, value: Tensor, positions: Tensor) -> Tensor:
        """Cross-attention maps ``B h w`` of ``n`` token positions."""


class TrainingHost(Protocol):
    """What a host lends for training."""

    text: TextEncoder
    tokenizer: Tokenizer
    alphas_cumprod: Tensor
    base: dict

    @property
    def device(self) -> torch.device:
        """Device of the UNet and the text encoder."""

    def open(self, checkpointing: bool = False) -> AbstractContextManager[Denoiser]:
        """Everything that is changed on the model is put back when the block is left."""

    def decode_image(self, latents: Tensor) -> Tensor:
        """``B 4 h w`` -> ``B 3 H W`` in [0, 1], differentiable."""


@dataclass(frozen=True)
class StepReport:
    """One finished step: ``step`` of ``total`` (warm-up counted apart), its losses and seconds."""

    step: int
    total: int
    loss: float
    parts: dict[str, float]
    seconds: float
    warmup: bool = False


@dataclass
class Batch:
    """One step's random choices."""

    photos: list[Photo]
    timesteps: Tensor  # B
    noise: Tensor  # B 4 h w
    layouts: list[Layout]
    tandem: list[Layout]
    generator: torch.Generator
    judged: Tensor | None = None  # rows clear enough for the identity loss, on the CPU; None without one
