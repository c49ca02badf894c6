"""The metrics on feature matrices have known values."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import linalg

from lab.evaluation.metrics import summarise
from lab.evaluation.scores import (
    FaceRule,
    clip_score,
    face_scores,
    frechet_distance,
    frechet_spread,
    similarity_to_references,
    similarity_to_texts,
)  # fmt: skip
from lab.evaluation.statistics import adjust, compare, paired


def gaussian(count: int, mean: list[float], spread: list[float], seed: int = 0) -> torch.Tensor:
    """Rows whose sample mean and diagonal covariance are exactly these."""
    rows = np.random.default_rng(seed).normal(size=(count, len(mean)))
    rows -= rows.mean(axis=0)
    rows = np.linalg.qr(rows)[0] * (count - 1) ** 0.5
    return torch.from_numpy(rows * np.array(spread) + np.array(mean))


def test_frechet_distance_of_two_gaussians_in_closed_form() -> None:
    a = gaussian(50, [0, 0, 0], [1, 2, 3])
    b = gaussian(80, [3, 4, 0], [2, 2, 1], seed=1)
    assert frechet_distance(a, b) == pytest.approx(25 + (1 - 2) ** 2 + 0 + (3 - 1) ** 2)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("counts", [(40, 30), (40, 5), (5, 6)])
def test_frechet_distance_is_that_of_the_matrix_root(counts: tuple[int, int]) -> None:
    random = np.random.default_rng(2)
    a, b = (random.normal(size=(n, 8)) @ random.normal(size=(8, 8)) for n in counts)
    covariances = [np.cov(rows, rowvar=False) for rows in (a, b)]
    root = linalg.sqrtm(covariances[0] @ covariances[1]).real
    expected = np.square(a.mean(0) - b.mean(0)).sum() + sum(map(np.trace, covariances)) - 2 * np.trace(root)
    assert frechet_distance(torch.from_numpy(a), torch.from_numpy(b)) == pytest.approx(expected, rel=1e-4)


def test_one_picture_has_no_distance() -> None:
    with pytest.raises(ValueError, match="at least two"):
        frechet_distance(torch.zeros(1, 3), torch.zeros(4, 3))


def test_spread_is_nothing_where_all_people_are_alike() -> None:
    group, real = gaussian(6, [0, 0], [1, 1]), gaussian(9, [1, 0], [1, 1], seed=3)
    copies = [torch.cat([group, group])] * 3
    assert frechet_spread(copies, real, rounds=5) == pytest.approx(0, abs=1e-9)
    assert frechet_spread([group, group + 5], real, rounds=20) > 1


def test_likeness_is_the_mean_cosine_with_all_references() -> None:
    features = torch.tensor([[2.0, 0.0], [0.0, 3.0]])
    references = torch.tensor([[1.0, 0.0], [0.0, 5.0], [-1.0, 0.0]])
    assert similarity_to_references(features, references).tolist() == pytest.approx([0, 1 / 3])


def test_texts_and_clip_score() -> None:
    cosines = similarity_to_texts(torch.tensor([[1.0, 0.0], [1.0, 1.0]]), torch.tensor([[-2.0, 0.0], [3.0, 0.0]]))
    assert cosines.tolist() == pytest.approx([-1, 0.5**0.5])
    assert clip_score(cosines).tolist() == pytest.approx([0, 2.5 * 0.5**0.5])


# --- faces ------------------------------------------------------------------------------------------------------------

ANNA, BEN = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
LEFT, RIGHT = (0.0, 0.0, 10.0, 10.0), (20.0, 0.0, 32.0, 12.0)


def test_no_face_scores_by_the_papers_rule() -> None:
    nothing = torch.zeros(0, 2)
    for score in (-1.0, 0.0, None):
        assert face_scores(FaceRule(no_face=score), [], nothing, [ANNA, BEN]) == [score, score]


def test_one_person_is_the_largest_face_against_all_references() -> None:
    vectors = torch.cat([ANNA, BEN])
    assert face_scores(FaceRule(), [LEFT, RIGHT], vectors, [torch.cat([ANNA, BEN, BEN])]) == pytest.approx([2 / 3])


def test_people_without_regions_are_matched_for_the_greatest_sum() -> None:
    assert face_scores(FaceRule(), [LEFT, RIGHT], torch.cat([BEN, ANNA]), [ANNA, BEN]) == [1, 1]
    assert face_scores(FaceRule(no_face=-1.0), [LEFT], BEN, [ANNA, BEN]) == [-1, 1]


def test_a_face_counts_only_where_it_was_designated() -> None:
    rule, vectors = FaceRule(overlap=0.5), torch.cat([ANNA, BEN])
    assert face_scores(rule, [LEFT, RIGHT], vectors, [ANNA, BEN], [LEFT, RIGHT]) == [1, 1]
    assert face_scores(rule, [LEFT, RIGHT], vectors, [ANNA, BEN], [RIGHT, LEFT]) == [0, 0], "each in the other's place"
    half = (0.0, 0.0, 10.0, 20.0)  # IoU exactly 0.5: not greater
    more = (0.0, 0.0, 10.0, 19.0)
    assert face_scores(rule, [LEFT], ANNA, [ANNA], [half]) == [0]
    assert face_scores(rule, [LEFT], ANNA, [ANNA], [more]) == [1]
    assert face_scores(rule, [], torch.zeros(0, 2), [ANNA], [half]) == [0]


# --- statistics -------------------------------------------------------------------------------------------------------


def test_the_bootstrap_interval_covers_the_mean() -> None:
    random = np.random.default_rng(0)
    inside = 0
    for _ in range(200):
        found = summarise(random.normal(1.0, 2.0, size=40).tolist(), rounds=400)
        inside += found.low <= 1.0 <= found.high
    assert 0.90 <= inside / 200 <= 0.98  # nominal .95; a percentile interval of 40 is a little narrow


def test_pairs_are_people_that_both_have() -> None:
    ours = {"anna": [1.0, 3.0], "ben": [5.0], "cleo": []}
    theirs = {"anna": [1.0], "cleo": [2.0], "dan": [4.0]}
    assert paired(ours, theirs) == [1.0]


def test_wilcoxon_knows_its_smallest_p() -> None:
    comparison = compare("ours", "dino", [0.1, 0.2, 0.3, 0.4, 0.5, 0.6])
    assert comparison.p == pytest.approx(2 / 2**6) and comparison.change.mean == pytest.approx(0.35)
    assert compare("ours", "dino", [0.0] * 6).p == 1
    few = compare("ours", "dino", [0.1] * 4)
    assert np.isnan(few.p)
    adjusted = adjust([comparison, few, compare("ours", "fid", [0.1, -0.1, 0.2, -0.2, 0.3, -0.31])])
    assert adjusted[0].adjusted == pytest.approx(2 * comparison.p) and np.isnan(adjusted[1].adjusted)
