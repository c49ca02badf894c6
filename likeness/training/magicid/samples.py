"""Training examples with everything frozen models say of them, and the random choices of a step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ...core.errors import bad_input
from .request import MagicIdTraining, Phase


@dataclass(frozen=True, eq=False)
class Sample:
    """One picture of N people.

    Attributes:
        latent: ``4 h w``, scaled.
        text: ``T C``, the text encoder's states of the caption.
        vectors: ``N R E``, the face recogniser's vectors of each person in R pictures, best in others than this one.
        regions: ``N h w``, how far each latent cell belongs to each face.
        boxes: ``N 4``, the faces' boxes as shares of the picture's width and height.
        poses: per mode the pose picture, ``3 H W`` uint8.
        weights: ``1 h w``, weight of each cell in the loss; None weighs all alike.
        scene: pictures of one scene with other people in it share this number; -1 for a scene of its own.
    """

    latent: Tensor
    text: Tensor
    vectors: Tensor
    regions: Tensor
    boxes: Tensor
    poses: Mapping[str, Tensor] = field(default_factory=dict)
    weights: Tensor | None = None
    scene: int = -1


@dataclass(frozen=True, eq=False)
class Batch:
    """Rows of one model call. N is that of the row with most people; others are filled up with people of weight 0.

    Attributes:
        latents, noise: ``B 4 h w``. timesteps: ``B``. text: ``B T C``. vectors: ``B N E``. planes: ``B N h w``.
        boxes: ``B 4``, of each row's first person. pose: ``B 3 H W`` in [0, 1] or None. weights: ``B 1 h w`` or None.
        clone: whether each picture stands there twice, side by side.
    """

    latents: Tensor
    noise: Tensor
    timesteps: Tensor
    text: Tensor
    vectors: Tensor
    planes: Tensor
    boxes: Tensor
    pose: Tensor | None = None
    weights: Tensor | None = None
    clone: bool = False

    def rows(self, first: int, last: int) -> Batch:
        """Some of the rows."""
        tensors = {k: v[first:last] for k, v in vars(self).items() if isinstance(v, Tensor)}
        return replace(self, **tensors)

    def to(self, device: torch.device) -> Batch:
        """On a device, without waiting for it."""
        moved = {k: v.to(device, non_blocking=True) for k, v in vars(self).items() if isinstance(v, Tensor)}
        return replace(self, **moved)


class Sampler:
    """Makes batches; each is a function of the seed and the step alone.

    Args:
        samples: at least one; some with one person where a phase clones faces.
        empty: ``T C``, the text encoder's states of an empty text.
        timesteps: of the model's training.

    Raises:
        LikenessError: no samples, or without a pose that a phase asks for.
    """

    def __init__(self, config: MagicIdTraining, samples: Sequence[Sample], empty: Tensor, timesteps: int) -> None:
        self.config, self.samples, self.empty, self.timesteps = config, samples, empty, timesteps
        if not samples:
            raise bad_input("MagicID training: data", "no pictures", "at least one", "Check the folder or shards.")
        lacking = sorted(mode for mode in config.modes if any(mode not in s.poses for s in samples))
        if lacking:
            raise bad_input(
                "MagicID training: data", f"pictures without {' and '.join(lacking)}", "those poses in every sample",
                "Annotate them, or leave the modes out of the phases.",
            )  # fmt: skip
        self.alone = [i for i, s in enumerate(samples) if len(s.vectors) == 1]
        scenes: dict[int, list[int]] = {}
        for i, sample in enumerate(samples):
            if sample.scene >= 0:
                scenes.setdefault(sample.scene, []).append(i)
        self.scenes = [rows for rows in scenes.values() if len(rows) > 1]

    def batch(self, step: int, phase: Phase, clone: bool = False) -> Batch:
        """The batch of a step, all processes' rows."""
        generator = torch.Generator().manual_seed((self.config.seed + 1) * 1_000_003 + step)
        groups = self._alone(generator) if clone else self._choose(generator)
        mode = None
        if phase.modes:
            mode = phase.modes[step % len(phase.modes)]
        return self._lay(groups, mode, generator, clone)

    def _alone(self, generator: torch.Generator) -> list[list[int]]:
        if not self.alone:
            raise bad_input(
                "MagicID training: clone pictures", "no picture of one person", "some", "Set clone_every to 0."
            )
        picks = torch.randint(len(self.alone), (self.config.batch,), generator=generator).tolist()
        return [[self.alone[i]] for i in picks]

    def _choose(self, generator: torch.Generator) -> list[list[int]]:
        """Groups of samples; the rows of a group share noise and timestep."""
        groups: list[list[int]] = []
        wanted = round(self.config.alike * self.config.batch) if self.scenes else 0
        while wanted > 1:
            scene = self.scenes[int(torch.randint(len(self.scenes), (), generator=generator))][:wanted]
            groups.append(scene)
            wanted -= len(scene)
        left = self.config.batch - sum(map(len, groups))
        return groups + [[i] for i in torch.randint(len(self.samples), (left,), generator=generator).tolist()]

    def _lay(self, groups: list[list[int]], mode: str | None, generator: torch.Generator, clone: bool) -> Batch:
        config, noise, timesteps, rows = self.config, [], [], []
        people = max(len(self.samples[i].vectors) for group in groups for i in group)
        for group in groups:
            low = config.alike_from if len(group) > 1 else 0
            t = int(torch.randint(low, self.timesteps, (), generator=generator))
            shape = self.samples[group[0]].latent.shape
            drawn = torch.randn((*shape[:2], shape[2] * (2 if clone else 1)), generator=generator)
            chances = torch.rand(3, generator=generator).tolist()
            noise += [drawn] * len(group)
            timesteps += [t] * len(group)
            rows += [self._row(self.samples[i], people, chances, generator) for i in group]
        chosen = [self.samples[i] for group in groups for i in group]
        text, vectors, planes = (torch.stack(parts) for parts in zip(*rows, strict=True))
        weights = None if chosen[0].weights is None else torch.stack([s.weights for s in chosen])
        made = Batch(
            torch.stack([s.latent.float() for s in chosen]), torch.stack(noise), torch.tensor(timesteps),
            text, vectors, planes, torch.stack([s.boxes[0] for s in chosen]),
            None if mode is None else torch.stack([s.poses[mode] for s in chosen]).float() / 255, weights,
        )  # fmt: skip
        return doubled(made) if clone else made

    def _row(
        self, sample: Sample, people: int, chances: Sequence[float], generator: torch.Generator
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Text, vectors ``N E`` and planes ``N h w`` of a row."""
        count, references, width = sample.vectors.shape
        picks = torch.randint(references, (count,), generator=generator)
        vectors, planes = torch.zeros(people, width), torch.zeros(people, *sample.regions.shape[1:])
        vectors[:count] = sample.vectors[torch.arange(count), picks].float()
        planes[:count] = sample.regions.float()
        if count == 1 and chances[0] < self.config.everywhere:
            planes[0] = 1
        if chances[1] < self.config.nobody:
            vectors = torch.zeros_like(vectors)
        text = self.empty if chances[2] < self.config.empty else sample.text
        return text.float(), vectors, planes


def doubled(batch: Batch) -> Batch:
    """Clone Face Tuning's pictures: picture and pose twice, side by side, the identity unchanged and in both faces."""

    def beside(x: Tensor | None) -> Tensor | None:
        return None if x is None else torch.cat([x, x], dim=-1)

    parts = {name: beside(getattr(batch, name)) for name in ("latents", "planes", "pose", "weights")}
    return replace(batch, **parts, clone=True)
