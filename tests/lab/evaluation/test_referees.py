"""The referees judge fresh held-out pictures as well as stated, and the measures built on them behave.

Thresholds: each measure was taken on 8 fresh seeds with this test's number of pictures; the bound is the mean less (or
plus) four standard deviations of those, rounded outwards. More pictures: ``lab/miniature/logs/*.md``.
"""

from __future__ import annotations

import itertools
import random
from dataclasses import replace

import numpy as np
import pytest
import torch

from lab.evaluation import drawn, metrics, referees
from lab.people import pair_cases, reference_person, single_cases
from likeness.core.errors import LikenessError
from likeness.faces.geometry import intersection_over_union
from likeness.faces.interface import FaceDetector, FaceEmbedder, LandmarkDetector
from likeness.miniature import models
from likeness.miniature import referees as networks
from likeness.miniature.faces import MiniatureDetector, MiniatureEmbedder
from likeness.miniature.world import sample_identity, sample_picture
from likeness.miniature.world.render import ground_truth

BOUNDS = {"recall": 0.97, "precision": 0.88, "landmarks": 0.05, "no face": 0.8, "auc": 0.98, "verification": 0.93,
          "same": 0.78, "different": 0.08, "trait lift": 0.16, "own prompt": 0.73}
ACCURACY = {"shot": 0.94, "scene": 0.76, "style": 0.89, "people": 0.96, "garment": 0.51, "colour": 0.72, "gender": 0.49,
            "accessory": 0.35}


@pytest.fixture(scope="module")
def judge() -> metrics.IdentityJudge:
    return metrics.IdentityJudge(MiniatureDetector(), MiniatureEmbedder())


def test_providers_fit_the_interfaces(judge: metrics.IdentityJudge) -> None:
    assert isinstance(judge.detector, FaceDetector) and isinstance(judge.detector, LandmarkDetector)
    assert isinstance(judge.embedder, FaceEmbedder)
    crops = torch.rand(3, 3, judge.embedder.size, judge.embedder.size, requires_grad=True)
    vectors = judge.embedder.embed(crops)
    assert vectors.shape == (3, judge.embedder.width)
    assert torch.allclose(vectors.norm(dim=1), torch.ones(3), atol=1e-5)
    vectors.sum().backward()
    assert crops.grad is not None and crops.grad.abs().sum() > 0


@pytest.mark.parametrize("name", networks.MODELS)
def test_referees_are_small(name: str) -> None:
    model = networks.load_referee(name)
    assert sum(p.numel() for p in model.parameters()) < 600_000
    assert not any(p.requires_grad for p in model.parameters()) and not model.training


def test_missing_weights_name_the_command(tmp_path: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "WEIGHTS", tmp_path)
    networks.load_referee.cache_clear()
    with pytest.raises(LikenessError, match=r"run\.py miniature train embedder"):
        networks.load_referee("embedder")
    networks.load_referee.cache_clear()


def test_the_detector_finds_held_out_faces() -> None:
    measured = referees.measure_detector(count=120, seed=91)
    assert measured.recall["all"] > BOUNDS["recall"]
    assert measured.precision > BOUNDS["precision"]
    assert measured.landmarks["all"] < BOUNDS["landmarks"]


@pytest.mark.parametrize("side", [192, 256])
def test_larger_pictures_are_found_at_their_own_scale(judge: metrics.IdentityJudge, side: int) -> None:
    picture = replace(sample_picture(random.Random(3), held_out=True, shot="portrait", people=1), style="flat")
    faces = judge.detector.detect(referees.drawn([picture], side))[0]
    truth = ground_truth(picture, side)[0]
    assert len(faces) == 1 and intersection_over_union(faces[0].box, truth.box) > 0.6
    placed = judge.detector.landmarks(referees.drawn([picture], side), torch.tensor([truth.box]))[0]
    assert np.abs(placed.numpy() - truth.five).max() < 0.15 * (truth.box[3] - truth.box[1])


def test_no_face_in_a_picture_without_people(judge: metrics.IdentityJudge) -> None:
    rng = random.Random(4)
    pictures = [sample_picture(rng, people=0) for _ in range(24)]
    scores = judge.similarity(referees.drawn(pictures), torch.ones(judge.embedder.width))
    assert 1 - metrics.detection_rate(scores) >= BOUNDS["no face"]
    assert judge.similarity(torch.full((1, 3, 128, 128), 0.5), torch.ones(judge.embedder.width)) == [metrics.NO_FACE]


def test_the_embedder_tells_held_out_people_apart() -> None:
    measured = referees.measure_embedder(people=80, seed=92)
    assert measured.auc > BOUNDS["auc"]
    assert measured.accuracy > BOUNDS["verification"]
    assert measured.same > BOUNDS["same"] and abs(measured.different) < BOUNDS["different"]
    lift = np.mean([measured.traits[t] - measured.chance[t] for t in measured.traits])
    assert lift > BOUNDS["trait lift"]


def test_similarity_falls_as_traits_change(judge: metrics.IdentityJudge) -> None:
    """One person, then more and more of another's traits: the mean cosine over 24 people never rises."""
    names, curve = list(networks.TRAITS), []
    for changed in (0, 3, 6, 13):
        scores = []
        for seed in range(24):
            rng = random.Random(seed)
            one = sample_identity(rng, held_out=True)
            other = sample_identity(rng)
            while other.gender != one.gender:
                other = sample_identity(rng)
            order = rng.sample(names, len(names))
            mixed = replace(one, **{name: getattr(other, name) for name in order[:changed]})
            a, b = (reference_person(who, random.Random(seed), 128) for who in (one, mixed))
            scores.append(float(judge.embed(a.image, [a.box])[0] @ judge.embed(b.image, [b.box])[0]))
        curve.append(float(np.mean(scores)))
    assert curve[0] == pytest.approx(1, abs=1e-3)
    assert all(earlier > later for earlier, later in itertools.pairwise(curve)), curve


def test_the_classifier_reads_held_out_pictures() -> None:
    measured = referees.measure_classifier(count=150, seed=93)
    for name, bound in ACCURACY.items():
        assert measured.accuracy[name] > max(bound, measured.chance[name]), name


def test_a_drawn_picture_fulfils_its_own_caption_and_not_another() -> None:
    pictures = [case.picture for case in single_cases(24, 128)]
    images = referees.drawn(pictures)
    own = np.mean(drawn.prompt_accuracy(images, pictures))
    others = np.mean(drawn.prompt_accuracy(images, pictures[1:] + pictures[:1]))
    assert own > BOUNDS["own prompt"]
    assert others < own - 0.2


def test_only_what_the_caption_tells_is_judged() -> None:
    picture = sample_picture(random.Random(1), people=1)
    figure = replace(picture.figures[0], word="person", expression="", item=None)
    asked = drawn.told(replace(picture, figures=(figure,)))
    assert set(asked) == {"scene", "style", "people", "shot", "garment", "colour"}
    named = replace(figure, word=figure.identity.gender, expression="sad")
    more = set(drawn.told(replace(picture, figures=(named,))))
    assert "gender" in more and not more & set(drawn.NOT_JUDGED)
    for case in pair_cases(3, 128):
        assert set(drawn.told(case.picture)) == {"scene", "style", "people"}


def test_two_people_are_matched_from_left_to_right(judge: metrics.IdentityJudge) -> None:
    cases = pair_cases(10, 128)
    references = [torch.cat([judge.embed(p.image, [p.box]) for p in case.people]) for case in cases]
    images = referees.drawn([case.picture for case in cases])
    right = [judge.assignment(image[None], reference)[0] for image, reference in zip(images, references, strict=True)]
    wrong = [judge.assignment(image[None], reference.flip(0))[0]
             for image, reference in zip(images, references, strict=True)]
    assert np.mean(right) > np.mean(wrong) + 0.3
    assert judge.assignment(torch.full((1, 3, 128, 128), 0.5), references[0]) == [[metrics.NO_FACE] * 2]


def test_summaries_resample_people() -> None:
    wide = metrics.summarise({"a": [0.0] * 50, "b": [1.0] * 50})
    assert (wide.mean, wide.low, wide.high, wide.count) == (0.5, 0.0, 1.0, 2)
    narrow = metrics.summarise([0.4, 0.5, 0.6] * 20)
    assert narrow.low < 0.5 < narrow.high and narrow.high - narrow.low < 0.06
    assert metrics.summarise([0.3]) == metrics.Summary(0.3, 0.3, 0.3, 1)
    with pytest.raises(ValueError, match="no values"):
        metrics.summarise([])


def test_sharpness_and_psnr() -> None:
    image = referees.drawn([sample_picture(random.Random(2))])
    soft = torch.nn.functional.avg_pool2d(image, 5, 1, 2)
    assert metrics.sharpness(soft)[0] < metrics.sharpness(image)[0]
    assert metrics.psnr(image + 0.1, image)[0] == pytest.approx(20, abs=0.01)


def test_colour_distance_is_small_for_the_same_person_only(judge: metrics.IdentityJudge) -> None:
    """Portraits in plain light without accessories: own skin and hair against another person's."""
    people = [case.people[0] for case in single_cases(12, 128)]
    colours = [metrics.face_colours(p.image, p.box) for p in people]
    own = [judge.colour_distances(p.image[None], colour)[0] for p, colour in zip(people, colours, strict=True)]
    other = [metrics.colour_distance(a, b) for a, b in itertools.pairwise(colours)]
    assert np.mean(own) < 0.05 < np.mean(other)
    assert judge.colour_distances(torch.full((1, 3, 128, 128), 0.5), colours[0]) == [1.0]
