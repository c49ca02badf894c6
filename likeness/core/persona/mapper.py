"""The mapper: diffusion time (and the person's image embedding) to word embeddings.

PersonaMagic, "Stage-regulated Textual Conditioning". A random-feature code of the timestep passes a trainable input
layer whose rows start as codes of anchor timesteps, a small trunk, and one head that writes ``n`` word embeddings.
A residual branch joins the CLIP embedding of the photo and writes what is later added to the text encoder's output
for the cross-attention *values* only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..errors import bad_input

COMBINATIONS = ("offset", "concat")
#: More of anything is a damaged file, not a mapper.
LARGEST = 2**16
#: what mends settings that only a damaged file has
MEND = "Copy the persona file again."


@dataclass(frozen=True)
class MapperConfig:
    """Shape of a mapper; saved with the persona.

    Attributes:
        widths: width of each text encoder the persona speaks to (one for SD1.x and SD2.x, two for SDXL).
        tokens: words written per persona, 1..n.
        bounds: timesteps spanned by the anchors; the range that is trained.
        image_width: length of the image embedding; 0 leaves the residual branch out.
        combination: ``offset``: the supercategory embedding is added to the head's output (released code);
            ``concat``: it is an input of the trunk (the paper's wording).
        residual_dropout: chance, per sample, that a training step sees no residual at all.
        head_gain: multiplies the head's initial weights; 1 is the released start, which is far from the
            supercategory; towards 0 the ``offset`` mapper starts at the supercategory itself.
        hidden, anchors, frequencies: widths inside.
    """

    widths: tuple[int, ...]
    tokens: int = 4
    bounds: tuple[int, int] = (400, 800)
    image_width: int = 512
    combination: str = "offset"
    residual_dropout: float = 0.5
    head_gain: float = 1.0
    hidden: int = 128
    anchors: int = 200
    frequencies: int = 1024

    def __post_init__(self) -> None:
        counts = {name: getattr(self, name) for name in ("tokens", "hidden", "anchors", "frequencies", "image_width")}
        for name, count in (*counts.items(), *(("widths", width) for width in self.widths)):
            least = 0 if name == "image_width" else 1
            if type(count) is not int or not least <= count <= LARGEST:
                raise bad_input(f"Persona mapper: {name}", repr(count), f"a whole number of {least} to {LARGEST}", MEND)
        if self.combination not in COMBINATIONS:
            raise bad_input("Persona mapper: combination", repr(self.combination), f"one of {COMBINATIONS}", MEND)
        if not self.widths:
            raise bad_input("Persona mapper: widths", self.widths, "at least one text encoder", MEND)
        low, high = self.bounds
        if not 0 <= low < high:
            raise bad_input("Persona mapper: bounds", self.bounds, "0 <= low < high timesteps", "Widen the stage.")

    @property
    def width(self) -> int:
        """Widths of all text encoders together."""
        return sum(self.widths)

    def to_dict(self) -> dict:
        """Plain JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict) -> MapperConfig:
        """Inverse of :meth:`to_dict`."""
        return cls(**{**values, "widths": tuple(values["widths"]), "bounds": tuple(values["bounds"])})


class MapperOutput(NamedTuple):
    """Words ``B n W`` for the text encoder's input, and ``B n W`` residuals for its output (None without a branch).

    ``kept`` (``B`` bool, or None for all) says which samples keep their residual; the rest have value = key exactly.
    """

    words: Tensor
    residual: Tensor | None
    kept: Tensor | None = None


def time_code(timesteps: Tensor, frequencies: int = 1024) -> Tensor:
    """``s(t) = [cos(t f_i), sin(t f_i)]``, ``f_i = 10000^(-i / frequencies)``; ``B`` -> ``B 2F``, norm sqrt(F)."""
    index = torch.arange(frequencies, device=timesteps.device, dtype=torch.float32)
    rates = torch.exp(-math.log(10000.0) * index / frequencies)
    angles = timesteps.to(torch.float32)[:, None] * rates  # B F
    return torch.cat([angles.cos(), angles.sin()], dim=1)


def anchor_timesteps(bounds: tuple[int, int], anchors: int) -> Tensor:
    """Evenly spaced timesteps of ``bounds``, the upper end left out: (400, 800) with 200 gives 400, 402, ... 798."""
    low, high = bounds
    return low + (high - low) * torch.arange(anchors, dtype=torch.float32) / anchors


def rescale(vectors: Tensor, lengths: Tensor | float, widths: Sequence[int]) -> Tensor:
    """Give every vector the wanted length, for each text encoder's part apart.

    Args:
        vectors: ``... W`` with ``W = sum(widths)``.
        lengths: broadcastable to ``... E`` with one length per encoder.
    """
    parts = vectors.split(list(widths), dim=-1)
    lengths = torch.as_tensor(lengths, device=vectors.device, dtype=vectors.dtype)
    lengths = lengths.expand(*vectors.shape[:-1], len(parts))
    units = [nn.functional.normalize(part, dim=-1) * lengths[..., i, None] for i, part in enumerate(parts)]
    return torch.cat(units, dim=-1)


def part_lengths(vectors: Tensor, widths: Sequence[int]) -> Tensor:
    """``... W`` -> ``... E``: the length of each text encoder's part."""
    return torch.stack([part.norm(dim=-1) for part in vectors.split(list(widths), dim=-1)], dim=-1)


def _mlp(inputs: int, hidden: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(inputs, hidden),
        nn.LayerNorm(hidden),
        nn.LeakyReLU(),
        nn.Linear(hidden, hidden),
        nn.LayerNorm(hidden),
        nn.LeakyReLU(),
    )


class Mapper(nn.Module):
    """Words for a timestep. Kept in float32 whatever the model's type is: it is small and its input codes are exact.

    Args:
        config: the shape.
        supercategory: ``W`` word embedding of the supercategory (all encoders' parts joined).
    """

    supercategory: Tensor

    def __init__(self, config: MapperConfig, supercategory: Tensor) -> None:
        super().__init__()
        if supercategory.shape != (config.width,):
            raise bad_input(
                "Persona mapper: supercategory embedding",
                f"shape {tuple(supercategory.shape)}",
                f"({config.width},)",
                "Use the text encoder that the persona was made for.",
            )
        self.config = config
        self.register_buffer("supercategory", supercategory.detach().float().clone())
        inputs = config.anchors + (config.width if config.combination == "concat" else 0)
        outputs = config.tokens * config.width
        self.input_layer = nn.Linear(2 * config.frequencies, config.anchors)
        self.trunk = _mlp(inputs, config.hidden)
        self.head = nn.Linear(config.hidden, outputs)
        if config.image_width:
            self.residual_trunk = _mlp(config.hidden + config.image_width, config.hidden)
            self.residual_head = nn.Linear(config.hidden, outputs)
        self._initialise()

    @torch.no_grad()
    def _initialise(self) -> None:
        config = self.config
        self.input_layer.weight.copy_(time_code(anchor_timesteps(config.bounds, config.anchors), config.frequencies))
        nn.init.uniform_(self.input_layer.bias, -(config.frequencies**-0.5), config.frequencies**-0.5)
        self.head.weight.mul_(config.head_gain)
        self.head.bias.mul_(config.head_gain)

    def forward(
        self, timesteps: Tensor, image: Tensor | None = None, generator: torch.Generator | None = None
    ) -> MapperOutput:
        """Words for each sample.

        Args:
            timesteps: ``B`` in [0, T), integers or fractions.
            image: ``B D`` (or ``1 D``) image embeddings; without them there is no residual.
            generator: a CPU generator switches residual dropout on (training); None keeps every residual.
        """
        config, batch = self.config, len(timesteps)
        features = self.input_layer(time_code(timesteps.to(self.supercategory.device), config.frequencies))  # B A
        if config.combination == "concat":
            features = torch.cat([features, self.supercategory.expand(batch, -1)], dim=1)
        hidden = self.trunk(features)  # B H
        words = self.head(hidden).view(batch, config.tokens, config.width)  # B n W
        if config.combination == "offset":
            words = words + self.supercategory
        words = rescale(words, part_lengths(self.supercategory, config.widths), config.widths)
        if image is None or not config.image_width:
            return MapperOutput(words, None)
        image = image.to(hidden).expand(batch, -1)
        joined = self.residual_trunk(torch.cat([hidden, image], dim=1))
        residual = self.residual_head(joined).view(batch, config.tokens, config.width)
        if generator is None:
            return MapperOutput(words, residual)
        kept = torch.rand(batch, generator=generator) >= config.residual_dropout
        return MapperOutput(words, residual, kept.to(hidden.device, non_blocking=True))
