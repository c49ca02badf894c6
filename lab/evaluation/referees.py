"""How good the miniature's referees are, on freshly drawn held-out people and combinations."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lab.evaluation.drawn import attributes_seen
from likeness.faces.geometry import crop_square, intersection_over_union
from likeness.miniature.faces import MiniatureDetector, MiniatureEmbedder
from likeness.miniature.referees import ATTRIBUTES, TRAITS, attribute_labels
from likeness.miniature.world import Picture, sample_identity, sample_picture
from likeness.miniature.world.render import ground_truth, render
from likeness.miniature.world.spec import ACCESSORIES

BATCH = 64


def drawn(pictures: Sequence[Picture], side: int = 128) -> Tensor:
    """Pictures ``N 3 side side`` in [0, 1]."""
    images = np.stack([render(picture, side) for picture in pictures])
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255


def in_batches(function: Callable[[Tensor], list], images: Tensor) -> list:
    """Results of ``function`` on batches of pictures, joined."""
    return [row for part in images.split(BATCH) for row in function(part)]


@dataclass(frozen=True)
class Detection:
    """``recall``: share of visible faces found (IoU 0.5); ``precision``: share of found faces that are there;
    ``landmarks``: mean landmark error as a share of the head's height; by name of the shot, and over all."""

    recall: dict[str, float]
    precision: float
    landmarks: dict[str, float]


def measure_detector(count: int = 400, seed: int = 5000, side: int = 128) -> Detection:
    """Faces found in held-out pictures of every kind; faces more than half hidden by another person do not count."""
    rng = random.Random(seed)
    pictures = [sample_picture(rng, held_out=True) for _ in range(count)]
    found, errors, right, total = {}, {}, 0, 0
    for picture, faces in zip(pictures, in_batches(MiniatureDetector().detect, drawn(pictures, side)), strict=True):
        truths = ground_truth(picture, side)
        total += len(faces)
        right += sum(any(intersection_over_union(f.box, t.box) >= 0.5 for t in truths) for f in faces)
        for figure, truth in zip(picture.figures, truths, strict=True):
            if truth.face.sum() < 0.5 * 0.6 * np.prod([truth.box[2] - truth.box[0], truth.box[3] - truth.box[1]]):
                continue
            match = next((f for f in faces if intersection_over_union(f.box, truth.box) >= 0.5), None)
            found.setdefault(picture.shot, []).append(match is not None)
            if match is not None:
                error = np.linalg.norm(match.landmarks.numpy() - truth.five, axis=1).mean() / (figure.head * side)
                errors.setdefault(picture.shot, []).append(float(error))
    return Detection(_means(found), right / max(1, total), _means(errors))


def _means(values: dict[str, list]) -> dict[str, float]:
    everything = [v for part in values.values() for v in part]
    return {**{name: float(np.mean(part)) for name, part in sorted(values.items())}, "all": float(np.mean(everything))}


@dataclass(frozen=True)
class Verification:
    """Same person or not, from two pictures with their own scene, clothes, accessory, expression and style.

    ``same``, ``different``: mean cosine; ``auc``: chance that a same pair scores above a different one; ``accuracy``:
    at the best threshold, half the pairs the same; ``traits``: share of pictures whose trait is read right, ``chance``:
    of always saying the most frequent value.
    """

    same: float
    different: float
    auc: float
    accuracy: float
    threshold: float
    traits: dict[str, float]
    chance: dict[str, float]


def measure_embedder(
    people: int = 200, seed: int = 6000, shot: str | None = "portrait", side: int = 128
) -> Verification:
    """Held-out people, two pictures each, faces cropped at their true boxes."""
    rng = random.Random(seed)
    identities = [sample_identity(rng, held_out=True) for _ in range(people)]
    pictures = [sample_picture(rng, who, held_out=True, shot=shot) for who in identities for _ in range(2)]
    boxes = torch.tensor([ground_truth(picture, side)[0].box for picture in pictures])
    embedder = MiniatureEmbedder()
    crops = crop_square(drawn(pictures, side), boxes, embedder.size)
    with torch.no_grad():
        vectors = torch.stack(in_batches(embedder.embed, crops)).unflatten(0, (people, 2))  # P 2 D
    cosine = vectors[:, 0] @ vectors[:, 1].T  # P P
    same, other = cosine.diagonal(), cosine[~torch.eye(people, dtype=torch.bool)]
    auc = float((same[:, None] > other[None]).float().mean())
    thresholds = torch.linspace(-0.5, 1, 301)
    accuracy = ((same[:, None] > thresholds).float().mean(0) + (other[:, None] <= thresholds).float().mean(0)) / 2
    traits, chance = _trait_accuracy(in_batches(embedder.traits, crops), [who for who in identities for _ in range(2)])
    return Verification(float(same.mean()), float(other.mean()), auc, float(accuracy.max()),
                        float(thresholds[accuracy.argmax()]), traits, chance)


def _trait_accuracy(read: list[dict], identities: list) -> tuple[dict[str, float], dict[str, float]]:
    right, chance = {}, {}
    for name in TRAITS:
        values = [getattr(who, name) for who in identities]
        right[name] = float(np.mean([row[name] == value for row, value in zip(read, values, strict=True)]))
        chance[name] = max(values.count(v) for v in set(values)) / len(values)
    return right, chance


@dataclass(frozen=True)
class Classification:
    """Accuracy of every attribute, and what always saying the most frequent value would reach."""

    accuracy: dict[str, float]
    chance: dict[str, float]


def measure_classifier(count: int = 400, seed: int = 7000, side: int = 128, shot: str | None = None) -> Classification:
    """Held-out pictures; an accessory counts as right when its kind, and no other, is seen."""
    rng = random.Random(seed)
    pictures = [sample_picture(rng, held_out=True, shot=shot) for _ in range(count)]
    seen = in_batches(attributes_seen, drawn(pictures, side))
    right, chance = {}, {}
    for i, (name, values) in enumerate(ATTRIBUTES.items()):
        labels = [attribute_labels(picture)[i] for picture in pictures]
        pairs = [(values[label], row[name]) for label, row in zip(labels, seen, strict=True) if label >= 0]
        truths = [truth for truth, _ in pairs]
        right[name] = float(np.mean([truth == guess for truth, guess in pairs]))
        chance[name] = max(truths.count(v) for v in set(truths)) / len(truths)
    worn = [frozenset(i.kind for i in (p.item, *(f.item for f in p.figures)) if i) for p in pictures]
    right["accessory"] = float(np.mean([kinds == row["accessory"] for kinds, row in zip(worn, seen, strict=True)]))
    chance["accessory"] = max(worn.count(kinds) for kinds in set(worn)) / len(worn)
    for kind in ACCESSORIES:
        truths = [kind in kinds for kinds in worn]
        guesses = [kind in row["accessory"] for row in seen]
        right[kind] = float(np.mean([truth == guess for truth, guess in zip(truths, guesses, strict=True)]))
        chance[kind] = max(np.mean(truths), 1 - np.mean(truths))
    return Classification(right, chance)


def report(name: str) -> str:
    """The held-out measures of one referee as a table."""
    return {"detector": _detector_report, "embedder": _embedder_report, "classifier": _classifier_report}[name]()


def _detector_report() -> str:
    d = measure_detector()
    lines = ["| shot | faces found | landmark error, share of the head |", "|---|---|---|"]
    lines += [f"| {shot} | {d.recall[shot]:.1%} | {d.landmarks[shot]:.3f} |" for shot in d.recall]
    return "\n".join([*lines, "", f"Found faces that are there: {d.precision:.1%}."])


def _embedder_report() -> str:
    lines = ["| shot | same person | different | AUC | accuracy |", "|---|---|---|---|---|"]
    for shot in ("portrait", "half body", "full body"):
        v = measure_embedder(shot=shot)
        lines.append(f"| {shot} | {v.same:.2f} | {v.different:.2f} | {v.auc:.3f} | {v.accuracy:.1%} |")
    v = measure_embedder()
    lines += ["", "| trait, portraits | read right | chance |", "|---|---|---|"]
    return "\n".join([*lines, *(f"| {t} | {v.traits[t]:.1%} | {v.chance[t]:.1%} |" for t in v.traits)])


def _classifier_report() -> str:
    c = measure_classifier()
    lines = ["| attribute | accuracy | chance |", "|---|---|---|"]
    return "\n".join([*lines, *(f"| {a} | {c.accuracy[a]:.1%} | {c.chance[a]:.1%} |" for a in c.accuracy)])
