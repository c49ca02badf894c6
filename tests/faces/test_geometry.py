"""Alignment, landmark sets, tilt, boxes and crops."""

from __future__ import annotations

import math

import pytest
import torch

from likeness.core.errors import LikenessError
from likeness.faces import geometry


def rotation(degrees: float, scale: float = 1.0) -> torch.Tensor:
    turn = math.radians(degrees)
    return scale * torch.tensor([[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]])


@pytest.mark.parametrize("degrees", [-170, -30, 0, 45, 180])
def test_the_transform_that_made_the_points_is_found(degrees: float) -> None:
    source = torch.randn(2, 5, 2, generator=torch.Generator().manual_seed(0)) * 20
    made = torch.cat([rotation(degrees, 1.7), torch.tensor([[12.0], [-7.0]])], dim=1).expand(2, -1, -1)
    found = geometry.similarity_transform(source, geometry.apply_transform(made, source))
    torch.testing.assert_close(found.float(), made, rtol=1e-4, atol=1e-4)
    back = geometry.apply_transform(geometry.invert_transform(found), geometry.apply_transform(found, source))
    torch.testing.assert_close(back, source, rtol=1e-4, atol=1e-4)


def test_a_mirrored_set_gives_a_rotation_not_a_mirror() -> None:
    points = geometry.template(112)[None]
    found = geometry.similarity_transform(points, points * torch.tensor([-1.0, 1.0]))
    assert torch.linalg.det(found[0, :, :2]) > 0


def test_least_squares_beats_its_neighbours() -> None:
    generator = torch.Generator().manual_seed(1)
    source, target = torch.randn(2, 1, 5, 2, generator=generator)
    found = geometry.similarity_transform(source, target)

    def error(matrix: torch.Tensor) -> float:
        return float((geometry.apply_transform(matrix, source.double()) - target.double()).square().sum())

    for turn, scale, shift in ((0.5, 1.0, 0.0), (-0.5, 1.0, 0.0), (0.0, 1.02, 0.0), (0.0, 1.0, 0.02)):
        other = torch.cat([rotation(turn, scale).double() @ found[..., :2], found[..., 2:] + shift], dim=-1)
        assert error(found) < error(other)


def test_crops_of_256_are_those_of_224_with_a_border() -> None:
    image = torch.rand(1, 3, 300, 280, generator=torch.Generator().manual_seed(2))
    landmarks = geometry.template(112)[None] * 1.4 + torch.tensor([50.0, 70.0])
    small, large = (geometry.norm_crop(image, landmarks, size) for size in (224, 256))
    torch.testing.assert_close(large[..., :224, 16:240], small, rtol=0, atol=1e-4)


def test_landmarks_come_to_stand_on_the_template() -> None:
    """Bright dots at the landmarks of a turned face are bright dots at the template."""
    turned = geometry.template(112) @ rotation(130).T + torch.tensor([150.0, 40.0])
    ys, xs = torch.meshgrid(torch.arange(220.0), torch.arange(220.0), indexing="ij")
    dots = sum(torch.exp(-((xs - x) ** 2 + (ys - y) ** 2) / 4) for x, y in turned)
    crop = geometry.norm_crop(dots.expand(1, 3, -1, -1), turned[None])[0, 0]
    for x, y in geometry.template(112).round().int().tolist():
        assert crop[y, x] > 0.8
    assert crop[0, 0] == 0


def test_other_crop_sizes_are_refused() -> None:
    with pytest.raises(LikenessError, match="multiple of 112 or 128"):
        geometry.template(160)


@pytest.mark.parametrize("count", [5, 68, 70, 106, 478])
def test_five_points_of_every_set(count: int) -> None:
    points = torch.arange(count * 2.0).view(count, 2)
    five = geometry.five_points(points)
    assert five.shape == (5, 2)
    if count == 68:
        assert five[:, 0].tolist() == [77, 89, 60, 96, 108]
    if count == 478:
        assert five[:, 0].tolist() == [936, 946, 2, 122, 582]
    with pytest.raises(LikenessError, match="5, 68, 70, 106 or 478"):
        geometry.five_points(torch.zeros(12, 2))


@pytest.mark.parametrize("degrees", [-135.0, -20.0, 0.0, 20.0, 90.0, 180.0])
def test_tilt_is_clockwise_as_seen(degrees: float) -> None:
    upright = torch.tensor([[0.0, 0.0], [10.0, 0.0], [5.0, 5.0], [2.0, 9.0], [8.0, 9.0]])
    found = geometry.tilt(upright @ rotation(degrees).T)  # y points down: a positive angle turns clockwise
    assert abs((found - degrees + 180) % 360 - 180) < 1e-3


def test_boxes() -> None:
    assert geometry.intersection_over_union((0, 0, 10, 10), (5, 0, 15, 10)) == pytest.approx(1 / 3)
    assert geometry.intersection_over_smaller((0, 0, 10, 10), (2, 2, 4, 4)) == 1
    assert geometry.intersection_over_union((0, 0, 1, 1), (2, 2, 3, 3)) == 0
    assert geometry.intersection_over_smaller((0, 0, 0, 0), (0, 0, 0, 0)) == 0
    for degrees, size in ((0, (10, 20)), (90, (20, 10)), (180, (10, 20))):
        x0, y0, x1, y1 = geometry.turned_box((50, 60), (10, 20), degrees)
        assert (x1 - x0, y1 - y0) == pytest.approx(size) and ((x0 + x1) / 2, (y0 + y1) / 2) == pytest.approx((50, 60))


@pytest.mark.parametrize("degrees", [0.0, 30.0, 90.0, 180.0])
def test_the_box_of_points_turns_with_them(degrees: float) -> None:
    upright = torch.tensor([[-10.0, -20.0], [10.0, -20.0], [10.0, 20.0], [-10.0, 20.0]])
    points = upright @ rotation(degrees).T + torch.tensor([100.0, 60.0])
    box, size = geometry.box_of_turned(points, degrees)
    assert size == pytest.approx((20, 40), abs=1e-3) and geometry.centre(box) == pytest.approx((100, 60), abs=1e-3)
    box, size = geometry.box_of_turned(points, degrees, forehead=True)
    assert size == pytest.approx((20, 50), abs=1e-3)
    up = rotation(degrees) @ torch.tensor([0.0, -5.0])
    assert geometry.centre(box) == pytest.approx((100 + float(up[0]), 60 + float(up[1])), abs=1e-3)


def test_a_tilted_square_crop_comes_out_upright() -> None:
    """The crop at an angle of a picture turned about the middle of the box equals the crop of the picture itself."""
    image = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(3))
    image = torch.nn.functional.interpolate(image, size=(160, 160), mode="bicubic").clamp(0, 1)
    middle = torch.tensor([80.0, 80.0])
    turn = torch.cat([rotation(35), (middle - 0.5 - rotation(35) @ (middle - 0.5))[:, None]], dim=1)
    turned = geometry.warp(image, turn[None], 160, 160)
    box = torch.tensor([[60.0, 60.0, 100.0, 100.0]])
    plain, upright = geometry.crop_square(image, box, 32), geometry.crop_square(turned, box, 32, degrees=35)
    assert (plain - upright).abs().mean() < 0.02
    assert (plain - geometry.crop_square(turned, box, 32)).abs().mean() > 0.1
