"""The miniature's referees in the places of CLIP, DINO and Inception: they judge drawn pictures, and only those."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lab.evaluation.drawn import read_heads
from likeness.miniature.referees import ATTRIBUTES, CLASSIFIER_SIDE, load_referee, resize
from likeness.miniature.world.spec import ACCESSORIES, COLOURS, GARMENTS, SCENES, SHOTS, STYLES

CLOTHES = re.compile(rf"wearing an? ({'|'.join(COLOURS)}) ({'|'.join(GARMENTS)})")


class MiniatureNetwork:
    """The attribute classifier: its last hidden layer ``N 128`` as features, its heads as judge of a prompt."""

    key = "miniature-classifier"

    def __init__(self) -> None:
        self.model = load_referee("classifier")

    @torch.no_grad()
    def features(self, pictures: Sequence[Image.Image]) -> Tensor:
        """Pictures of any sizes -> ``N 128``."""
        return self.model.trunk(torch.cat([_small(picture) for picture in pictures]) - 0.5)

    @torch.no_grad()
    def match(self, features: Tensor, prompts: Sequence[str]) -> Tensor:
        """Per picture the share of what its prompt tells that the classifier sees, in [0, 1]; nan: it tells nothing."""
        seen = read_heads(*self.model.read(features))
        return torch.tensor([_share(told_in_words(p), one) for p, one in zip(prompts, seen, strict=True)])


def _small(picture: Image.Image) -> Tensor:
    pixels = torch.from_numpy(np.asarray(picture, dtype=np.float32) / 255).permute(2, 0, 1)[None]
    return resize(pixels, CLASSIFIER_SIDE)


def _share(told: dict[str, object], seen: dict[str, object]) -> float:
    hits = [value <= seen[name] if name == "accessory" else seen[name] == value for name, value in told.items()]
    return float(np.mean(hits)) if hits else float("nan")


def told_in_words(prompt: str) -> dict[str, object]:
    """What a prompt in the drawn world's words tells of the picture, by the classifier's names.

    Clothes and accessories are told of one person only: with several, nobody says whose they are.
    """
    told: dict[str, object] = {name: value for name, texts in (("scene", SCENES), ("style", STYLES))
                               for value, text in texts.items() if re.search(rf"\b{text}\b", prompt)}
    clothes = CLOTHES.findall(prompt)
    told |= _only("shot", [shot for shot in SHOTS if f", {shot}," in f"{prompt},"])
    if clothes:
        told["people"] = len(clothes)
    if len(clothes) == 1:
        told["colour"], told["garment"] = clothes[0]
        told |= _only("gender", [word for word in ATTRIBUTES["gender"] if re.search(rf"\b{word}\b", prompt)])
    kinds = {kind for kind in ACCESSORIES if re.search(rf"\b{kind}\b", prompt)}
    return {**told, "accessory": kinds} if kinds and len(clothes) <= 1 else told


def _only(name: str, values: Sequence[str]) -> dict[str, object]:
    return {name: values[0]} if values else {}
