"""Landmark pictures: colours, sizes and places as the ControlNets' own preprocessors have them."""

from __future__ import annotations

import pytest
import torch

from likeness.drawing.faces import draw_overlay
from likeness.drawing.pose import INSTANTID, MEDIAPIPE, OPENPOSE, OPENPOSE_THICK, STYLES, draw_faces, draw_people
from likeness.faces.interface import Face
from likeness.faces.keypoints import Person

FIVE = torch.tensor([[80.0, 100.0], [160.0, 100.0], [120.0, 140.0], [90.0, 180.0], [150.0, 180.0]])


def face(points: torch.Tensor | None, dense: torch.Tensor | None = None) -> Face:
    return Face((60.0, 60.0, 180.0, 200.0), 0.9, points, dense)


def pixel(image: torch.Tensor, x: float, y: float) -> tuple[int, ...]:
    return tuple((image[:, round(y), round(x)] * 255).round().int().tolist())


def spread(count: int) -> torch.Tensor:
    """Points apart from each other by 20 pixels or more."""
    index = torch.arange(count)
    return torch.stack([30.0 + 20 * (index % 22), 30.0 + 20 * (index // 22)], dim=1)


def test_instantid_draws_dots_over_dimmer_sticks() -> None:
    image = draw_faces([face(FIVE)], 256, 256, INSTANTID)
    colours = ((255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (255, 0, 255))
    for (x, y), colour in zip(FIVE.tolist(), colours, strict=True):
        assert pixel(image, x, y) == pixel(image, x + 9, y) == colour
        assert pixel(image, x, y - 12) in ((0, 0, 0), tuple(int(0.6 * part) for part in colour), (0, 0, 255))
    assert pixel(image, 100, 120) == (153, 0, 0), "halfway from the left eye to the nose"
    assert pixel(image, 30, 30) == (0, 0, 0)


def test_openpose_draws_seventy_white_points_of_radius_three() -> None:
    points = spread(68)
    image = draw_faces([face(FIVE, points)], 256, 512, OPENPOSE)
    for x, y in points.tolist():
        assert pixel(image, x, y) == pixel(image, x + 2, y) == (255, 255, 255) and pixel(image, x + 5, y) == (0, 0, 0)
    assert set(image.unique().tolist()) == {0.0, 1.0}
    eyes = draw_faces([face(FIVE)], 256, 256, OPENPOSE)
    assert pixel(eyes, 80, 100) == (170, 0, 255) and pixel(eyes, 160, 100) == (255, 0, 255)


def test_openpose_draws_bodies_under_their_faces() -> None:
    body = torch.full((18, 2), torch.nan)
    body[[1, 2, 3]] = torch.tensor([[100.0, 50.0], [40.0, 50.0], [40.0, 150.0]])
    person = Person(body, torch.full((70, 2), torch.nan))
    image = draw_people([person], 256, 256, OPENPOSE)
    assert pixel(image, 100, 50) == (255, 85, 0) and pixel(image, 40, 150) == (255, 255, 0)
    assert pixel(image, 70, 50) == (153, 0, 0) == pixel(image, 70, 53), "neck to right shoulder, dimmed"
    assert pixel(image, 70, 56) == (0, 0, 0)
    assert pixel(image, 40, 100) == (153, 102, 0)
    large = [draw_people([person], 256, 1024, style) for style in (OPENPOSE, OPENPOSE_THICK)]
    assert [int((one[0, :, 70] > 0).sum()) for one in large] == pytest.approx([8, 24], abs=2)


def test_mediapipe_draws_its_colours() -> None:
    points = spread(478)
    image = draw_faces([face(FIVE, points)], 512, 512, MEDIAPIPE)
    at = points.tolist()
    for index, colour in ((468, (250, 200, 10)), (473, (10, 200, 250))):
        x, y = at[index]
        assert all(pixel(image, x + dx, y + dy) == colour for dx in (-2, 1) for dy in (-2, 1))
        assert pixel(image, x + 2, y) != colour
    colours = {tuple(c) for c in (image.permute(1, 2, 0).reshape(-1, 3) * 255).round().int().tolist()}
    assert colours == {
        (0, 0, 0), (10, 200, 10), (10, 180, 10), (10, 200, 180), (10, 220, 180), (180, 200, 10), (180, 220, 10),
        (250, 200, 10), (10, 200, 250),
    }  # fmt: skip


@pytest.mark.parametrize("count", [68, 106])
def test_mediapipe_makes_the_best_of_smaller_sets(count: int) -> None:
    image = draw_faces([face(FIVE, spread(count))], 256, 512, MEDIAPIPE)
    assert image.max() > 0
    assert draw_faces([face(FIVE)], 256, 256, MEDIAPIPE).max() == 0, "nothing with five"


@pytest.mark.parametrize("style", STYLES)
def test_nobody_is_black_and_points_outside_do_no_harm(style: str) -> None:
    assert draw_faces([], 64, 48, style).shape == (3, 64, 48) and draw_faces([], 64, 48, style).max() == 0
    assert draw_faces([face(None)], 64, 48, style).max() == 0
    assert draw_faces([face(FIVE - 500, spread(478) - 400)], 64, 48, style).shape == (3, 64, 48)
    nowhere = Person(torch.full((18, 2), torch.nan), torch.full((70, 2), torch.nan))
    assert draw_people([nowhere], 64, 48, style).max() == 0
    whole = Person(torch.full((18, 2), 20.0), spread(70))
    assert draw_people([whole], 256, 512, style).max() > 0


def test_the_overlay_numbers_the_chosen_and_the_others() -> None:
    from dataclasses import replace

    one, two = replace(face(FIVE), number=1), Face((10.0, 10.0, 40.0, 50.0), 0.9, number=2)
    picture = torch.full((3, 256, 256), 0.2)
    image = draw_overlay(picture, [one, two], [one])
    assert pixel(image, 60, 130) == (90, 220, 120) and pixel(image, 10, 40) == (150, 150, 150)
    assert torch.equal(draw_overlay(picture, [], []), (picture * 255).round() / 255)
    assert draw_overlay(torch.zeros(3, 0, 4), [], []).shape == (3, 0, 4)
