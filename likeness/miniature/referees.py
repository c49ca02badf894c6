"""The miniature's referees: small networks that judge its pictures. They are trained on the drawn world only and are
never a training loss of what they judge.

``Detector`` finds faces and five landmarks, ``Embedder`` says who a face is, ``Classifier`` says what a picture
shows. Weights are fp16 safetensors in ``weights``; ``python run.py miniature train detector`` (``embedder``,
``classifier``) remakes them.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import fields

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from .models import weights_file
from .world import identity as who
from .world.identity import Identity
from .world.spec import ACCESSORIES, COLOURS, EXPRESSIONS, GARMENTS, SCENES, STYLES, Picture

DETECTOR_SIDE = 128
EMBEDDER_SIDE = 64
CLASSIFIER_SIDE = 80
STRIDE = 8
EMBEDDING = 128

#: What an identity is made of: trait -> its values, in the order of the referee's classes.
TRAITS: dict[str, tuple] = {
    "gender": ("woman", "man"),
    "skin": tuple(range(len(who.SKIN))),
    "face": who.FACE_SHAPES,
    "hair": tuple(dict.fromkeys(who.HAIR_WOMAN + who.HAIR_MAN)),
    "hair_colour": tuple(who.HAIR_COLOURS),
    "eye_colour": tuple(range(len(who.EYE_COLOURS))),
    "eye_size": (0, 1, 2),
    "eye_spacing": (0, 1, 2),
    "brows": who.BROWS,
    "nose": who.NOSES,
    "mouth": who.MOUTHS,
    "facial_hair": who.FACIAL_HAIR,
    "marks": who.MARKS,
}
#: What a picture shows: attribute -> its values. ``accessory`` is apart: any number of kinds may be there.
ATTRIBUTES: dict[str, tuple] = {
    "shot": ("portrait", "half body", "full body", "object"),
    "scene": tuple(SCENES),
    "style": tuple(STYLES),
    "people": (0, 1, 2, 3, 4),
    "garment": GARMENTS,
    "colour": tuple(COLOURS),
    "expression": EXPRESSIONS,
    "gender": ("woman", "man"),
}


def trait_labels(identity: Identity) -> list[int]:
    """Class index of every trait, in the order of TRAITS."""
    return [values.index(getattr(identity, name)) for name, values in TRAITS.items()]


def attribute_labels(picture: Picture) -> list[int]:
    """Class index of every attribute, in the order of ATTRIBUTES; -1 where the picture shows none or several."""
    shown = {"shot": picture.shot, "scene": picture.scene, "style": picture.style, "people": len(picture.figures)}
    if len(picture.figures) == 1:
        figure = picture.figures[0]
        shown |= {"garment": figure.garment, "colour": figure.colour, "expression": figure.expression,
                  "gender": figure.identity.gender}
    return [values.index(shown[name]) if name in shown else -1 for name, values in ATTRIBUTES.items()]


def accessory_labels(picture: Picture) -> list[float]:
    """1 for every accessory kind in the picture, in the order of ACCESSORIES."""
    kinds = {item.kind for item in (picture.item, *(f.item for f in picture.figures)) if item is not None}
    return [float(kind in kinds) for kind in ACCESSORIES]


def _conv(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU())


class Residual(nn.Module):
    """Two normalised 3x3 convolutions beside a skip."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            _conv(width, width), nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        )

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.layers(x))


class Detector(nn.Module):
    """A single-scale, anchor-free face detector: one prediction for each 8-pixel cell of a 128-pixel picture.

    Output ``B 15 16 16``: face logit; centre's offset from the cell's middle in cells (x, y); log of width and height
    in units of 32 pixels; five landmarks relative to the cell's middle in units of the height (x, y each).
    """

    def __init__(self) -> None:
        super().__init__()
        self.fine = nn.Sequential(nn.PixelUnshuffle(2), _conv(12, 24), _conv(24, 32, 2), Residual(32), _conv(32, 64, 2),
                                  Residual(64))
        self.middle = nn.Sequential(_conv(64, 80, 2), Residual(80))
        self.coarse = nn.Sequential(_conv(80, 80, 2), Residual(80))
        self.from_coarse, self.from_middle = nn.Conv2d(80, 80, 1), nn.Conv2d(80, 64, 1)
        self.head = nn.Sequential(_conv(64, 64), nn.Conv2d(64, 15, 1))

    def forward(self, images: Tensor) -> Tensor:
        fine = self.fine(images - 0.5)  # B 64 16 16
        middle = self.middle(fine)  # B 80 8 8
        coarse = self.coarse(middle)  # B 80 4 4
        middle = middle + F.interpolate(self.from_coarse(coarse), scale_factor=2.0)
        return self.head(fine + F.interpolate(self.from_middle(middle), scale_factor=2.0)).float()


def cell_middles(cells: int = DETECTOR_SIDE // STRIDE, device: torch.device | None = None) -> Tensor:
    """Middles of the detector's cells in pixels of its input, ``cells cells 2`` (x, y)."""
    ramp = (torch.arange(cells, device=device) + 0.5) * STRIDE
    return torch.stack(torch.meshgrid(ramp, ramp, indexing="xy"), dim=-1)


def decode_cells(output: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Scores ``B N``, boxes ``B N 4`` and landmarks ``B N 5 2`` of all cells, in pixels of the detector's input."""
    rows = output.flatten(2).transpose(1, 2)  # B N 15
    middle = cell_middles(output.shape[-1], output.device).reshape(1, -1, 2)
    centre = middle + rows[..., 1:3] * STRIDE
    size = rows[..., 3:5].clamp(-3, 2).exp() * 32
    points = middle.unsqueeze(2) + rows[..., 5:].unflatten(-1, (5, 2)) * size[..., 1, None, None]
    return rows[..., 0].sigmoid(), torch.cat([centre - size / 2, centre + size / 2], -1), points


class Embedder(nn.Module):
    """Face crops ``B 3 64 64`` to identity vectors; heads read the traits from the same vector."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(
            nn.PixelUnshuffle(2), _conv(12, 32), Residual(32), _conv(32, 48, 2), Residual(48), _conv(48, 96, 2),
            Residual(96), nn.Conv2d(96, 16, 1), nn.Flatten(), nn.Linear(16 * 64, EMBEDDING),
        )
        self.traits = nn.Linear(EMBEDDING, sum(len(v) for v in TRAITS.values()))

    def forward(self, crops: Tensor) -> Tensor:
        """Identity vectors ``B 128``, not normalised."""
        return self.trunk(crops - 0.5).float()

    def trait_logits(self, vectors: Tensor) -> list[Tensor]:
        """Logits of every trait from vectors of :meth:`forward`, in the order of TRAITS."""
        return list(self.traits(vectors).split([len(v) for v in TRAITS.values()], dim=1))


class Classifier(nn.Module):
    """Whole pictures ``B 3 80 80`` to attributes and accessories."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(
            nn.PixelUnshuffle(2), _conv(12, 24), Residual(24), _conv(24, 48, 2), Residual(48), _conv(48, 80, 2),
            Residual(80), _conv(80, 96, 2), Residual(96), nn.Conv2d(96, 24, 1), nn.Flatten(), nn.ReLU(),
            nn.Linear(24 * 25, 128), nn.ReLU(),
        )
        self.heads = nn.Linear(128, sum(len(v) for v in ATTRIBUTES.values()) + len(ACCESSORIES))

    def forward(self, images: Tensor) -> tuple[list[Tensor], Tensor]:
        """Logits of every attribute in the order of ATTRIBUTES, and of every accessory kind ``B 8``."""
        return self.read(self.trunk(images - 0.5))

    def read(self, features: Tensor) -> tuple[list[Tensor], Tensor]:
        """The logits of :meth:`forward` from the trunk's features ``B 128``."""
        out = self.heads(features).float()
        parts = out.split([*(len(v) for v in ATTRIBUTES.values()), len(ACCESSORIES)], dim=1)
        return list(parts[:-1]), parts[-1]


MODELS: dict[str, type[nn.Module]] = {"detector": Detector, "embedder": Embedder, "classifier": Classifier}


@functools.cache
def load_referee(name: str) -> nn.Module:
    """A shipped referee (fp32, evaluation mode, no gradients in its own weights), loaded once.

    Args:
        name: ``detector``, ``embedder`` or ``classifier``.

    Raises:
        LikenessError: its weights are missing.
    """
    model, stored = MODELS[name](), load_file(weights_file(name))
    model.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in stored.items()})
    return model.eval().requires_grad_(False)


def resize(images: Tensor, side: int) -> Tensor:
    """Pictures ``B 3 H W`` to ``B 3 side side``, antialiased."""
    if images.shape[-2:] == (side, side):
        return images
    return F.interpolate(images, size=(side, side), mode="bilinear", antialias=True, align_corners=False).clamp(0, 1)


def shared_traits(a: Identity, b: Identity) -> float:
    """Share of traits two identities have in common, in [0, 1]."""
    names: Sequence[str] = [f.name for f in fields(Identity)]
    return sum(getattr(a, n) == getattr(b, n) for n in names) / len(names)
