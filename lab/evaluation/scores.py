"""The papers' metrics as pure functions on feature matrices; the networks that make the features are in ``networks``.

A feature matrix is ``N D``: one row a picture. Nothing here reads a file or knows a network.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from likeness.faces.geometry import Box, intersection_over_union

#: CLIPScore's factor (Hessel et al. 2021, Eq. 1): T-Sim is in this unit, CLIP-T is the plain cosine.
CLIP_SCORE = 2.5


def similarity_to_references(features: Tensor, references: Tensor) -> Tensor:
    """CLIP-I and DINO: the mean cosine of every picture ``N D`` with all reference pictures ``R D`` -> ``N``."""
    return (F.normalize(features, dim=1) @ F.normalize(references, dim=1).T).mean(dim=1)


def similarity_to_texts(features: Tensor, texts: Tensor) -> Tensor:
    """CLIP-T: the cosine of every picture ``N D`` with its own prompt ``N D`` -> ``N``."""
    return F.cosine_similarity(features, texts, dim=1)


def clip_score(cosines: Tensor) -> Tensor:
    """PersonaMagic's T-Sim: ``2.5 max(cos, 0)``, in [0, 2.5]."""
    return CLIP_SCORE * cosines.clamp(min=0)


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """FID of feature matrices ``N D`` and ``M D`` (Heusel et al. 2017, Eq. 6), at least 0.

    ``|mu_a - mu_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2))``. The last trace is the sum of the singular values of
    ``A B^T`` for centred, scaled matrices with ``A^T A = S_a``: exact also where there are fewer pictures than features
    and no matrix root exists.

    Raises:
        ValueError: a set has fewer than two pictures, which have no covariance.
    """
    if min(len(a), len(b)) < 2:
        raise ValueError(f"frechet_distance: got {len(a)} and {len(b)} pictures; expected at least two of each")
    (mean_a, root_a), (mean_b, root_b) = _gaussian(a), _gaussian(b)
    both = torch.linalg.svdvals(root_a @ root_b.T).sum()
    distance = (mean_a - mean_b).square().sum() + root_a.square().sum() + root_b.square().sum() - 2 * both
    return max(0.0, float(distance))


def _gaussian(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean ``D`` and a root ``min(N, D) D`` of the covariance (divided by N - 1)."""
    rows = features.double()
    mean = rows.mean(dim=0)
    root = (rows - mean) / (len(rows) - 1) ** 0.5
    return mean, torch.linalg.qr(root, mode="r").R if len(root) > root.shape[1] else root


def frechet_spread(groups: Sequence[Tensor], real: Tensor, rounds: int = 200, seed: int = 0) -> float:
    """Standard deviation of the FID when whole people (``groups`` of rows ``n D``) are drawn anew.

    The percentiles themselves are not used: a set drawn with repetition lies further from the real one than any.
    """
    random = np.random.default_rng(seed)
    picks = random.integers(len(groups), size=(rounds, len(groups)))
    return float(np.std([frechet_distance(torch.cat([groups[i] for i in pick]), real) for pick in picks], ddof=1))


# --- faces ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FaceRule:
    """When a face counts for FaceSim, and what stands where it does not.

    Attributes:
        no_face: score of a person for whom no face is there. -1 is PersonaMagic's; None leaves the picture out.
        overlap: IoU with the designated region that a face must exceed to count (MagicID: 0.5); None: anywhere.
        misplaced: score where the nearest face does not (MagicID: 0).
    """

    no_face: float | None = 0.0
    overlap: float | None = None
    misplaced: float = 0.0


def face_scores(
    rule: FaceRule,
    boxes: Sequence[Box],
    vectors: Tensor,
    references: Sequence[Tensor],
    regions: Sequence[Box] | None = None,
) -> list[float | None]:
    """FaceSim of one picture, one score a person; None: left out by the rule.

    Args:
        boxes, vectors: of the faces found, ``F`` and ``F D`` of unit length.
        references: per person the vectors ``R D`` of their reference faces; the score is the mean cosine.
        regions: per person the designated box, in pixels; used where the rule asks for overlap.

    One person without a region is the largest face. Several without regions are matched to faces so that the sum of
    their scores is greatest; with regions each is the face that overlaps its own the most.
    """
    if not len(boxes):
        return [rule.no_face] * len(references)
    scores = torch.stack([(vectors @ known.T).mean(dim=1) for known in references])  # P F
    if rule.overlap is not None and regions is not None:
        return [_placed(rule, boxes, row, region) for row, region in zip(scores, regions, strict=True)]
    if len(references) == 1:
        sizes = [(x1 - x0) * (y1 - y0) for x0, y0, x1, y1 in boxes]
        return [float(scores[0, int(np.argmax(sizes))])]
    found: dict[int, float] = {}
    for person, face in zip(*linear_sum_assignment(scores.numpy(), maximize=True), strict=True):
        found[int(person)] = float(scores[person, face])
    return [found.get(person, rule.no_face) for person in range(len(references))]


def _placed(rule: FaceRule, boxes: Sequence[Box], scores: Tensor, region: Box) -> float:
    overlaps = [intersection_over_union(box, region) for box in boxes]
    nearest = int(np.argmax(overlaps))
    return float(scores[nearest]) if overlaps[nearest] > rule.overlap else rule.misplaced
