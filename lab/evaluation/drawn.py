"""What a drawn picture's caption tells, and what the classifier sees of it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from likeness.miniature.referees import ATTRIBUTES, CLASSIFIER_SIDE, load_referee, resize
from likeness.miniature.world import Picture
from likeness.miniature.world.spec import ACCESSORIES

#: told in captions, not judged: the classifier does not read it better than chance (lab/miniature/logs/classifier.md)
NOT_JUDGED = ("expression",)


def told(picture: Picture) -> dict[str, object]:
    """What the picture's caption tells: attribute -> value in the classifier's words; ``accessory`` -> set of kinds.

    Attributes in NOT_JUDGED are left out.
    """
    out: dict[str, object] = {"scene": picture.scene, "style": picture.style, "people": len(picture.figures)}
    if len(picture.figures) <= 1:
        out["shot"] = picture.shot
    if len(picture.figures) == 1:
        figure = picture.figures[0]
        out |= {"garment": figure.garment, "colour": figure.colour}
        out |= {"expression": figure.expression} if figure.expression else {}
        out |= {"gender": figure.word} if figure.word in ATTRIBUTES["gender"] else {}
    kinds = {item.kind for item in (picture.item, *(f.item for f in picture.figures)) if item is not None}
    out |= {"accessory": kinds} if kinds else {}
    return {name: value for name, value in out.items() if name not in NOT_JUDGED}


@torch.no_grad()
def attributes_seen(images: Tensor) -> list[dict[str, object]]:
    """What the classifier sees in every picture of ``B 3 H W``: attribute -> value; ``accessory`` -> set of kinds."""
    return read_heads(*load_referee("classifier")(resize(images.float().cpu(), CLASSIFIER_SIDE)))


def read_heads(named: Sequence[Tensor], accessories: Tensor) -> list[dict[str, object]]:
    """The classifier's logits in words, one dictionary a picture."""
    picks = {name: logits.argmax(dim=1).tolist() for name, logits in zip(ATTRIBUTES, named, strict=True)}
    worn = (accessories > 0).tolist()
    return [
        {**{name: ATTRIBUTES[name][picks[name][row]] for name in ATTRIBUTES},
         "accessory": {kind for kind, there in zip(ACCESSORIES, worn[row], strict=True) if there}}
        for row in range(len(accessories))
    ]


def prompt_hits(images: Tensor, pictures: Sequence[Picture]) -> list[dict[str, bool]]:
    """Per picture, of every attribute its caption tells, whether the classifier sees it.

    Args:
        images: ``B 3 H W`` in [0, 1].
        pictures: what was asked for, one each.
    """
    return [
        {name: value <= seen[name] if name == "accessory" else seen[name] == value for name, value in asked.items()}
        for asked, seen in zip(map(told, pictures), attributes_seen(images), strict=True)
    ]


def prompt_accuracy(images: Tensor, pictures: Sequence[Picture]) -> list[float]:
    """Per picture the share of told attributes that the classifier sees."""
    return [float(np.mean(list(hits.values()))) for hits in prompt_hits(images, pictures)]
