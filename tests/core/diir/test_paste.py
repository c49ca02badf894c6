"""Crops and their way back: outside the masks a picture keeps every bit."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from likeness.core.diir.gate import Gate
from likeness.core.diir.geometry import Crop, cut, eye_tilt, face_crop, put_back
from likeness.core.diir.paste import Patch, feathered, hull_mask, paste
from likeness.core.diir.repair import Place, repair
from likeness.faces.interface import Face
from likeness.faces.masks import head_ellipse

BOXES = {
    "middle": (40.0, 30.0, 64.0, 60.0),
    "corner": (-8.0, -6.0, 14.0, 20.0),
    "edge": (100.5, 50.0, 130.0, 88.0),
    "8 px": (60.0, 40.0, 67.0, 48.0),
    "as large as the picture": (2.0, 1.0, 110.0, 95.0),
}
TILTS = (0.0, 0.4, -1.2, math.pi)


class Inked:
    """A model whose latents are the pixels; what it draws is one colour."""

    def __init__(self, colour: float = 0.5) -> None:
        self.colour, self.chunks = colour, []

    def encode(self, crops: Tensor) -> Tensor:
        return crops

    def decode(self, latents: Tensor) -> Tensor:
        return latents

    def restore(self, latents: Tensor, masks: Tensor, faces: Sequence[int]) -> Tensor:
        self.chunks.append(list(faces))
        return torch.lerp(latents, torch.full_like(latents, self.colour), masks)


def picture(channels: int = 3, height: int = 96, width: int = 112, seed: int = 0) -> Tensor:
    eight_bit = torch.randint(0, 256, (channels, height, width), generator=torch.Generator().manual_seed(seed))
    return eight_bit.float() / 255


def head(size: int = 64) -> Tensor:
    return feathered(ellipse(size))


def ellipse(size: int) -> Tensor:
    """Round a face in the middle of its crop, 0.8 times as wide as it is high."""
    half, middle = 0.5 / 1.8 * size, 0.46 * size
    box = (size / 2 - 0.8 * half, middle - half, size / 2 + 0.8 * half, middle + half)
    return head_ellipse(Face(box, 1.0), size, size)


@pytest.mark.parametrize("tilt", TILTS)
@pytest.mark.parametrize("box", BOXES.values(), ids=BOXES)
@pytest.mark.parametrize("channels", [3, 4])
def test_outside_the_mask_nothing_changes(channels: int, box: tuple[float, ...], tilt: float) -> None:
    image = picture(channels)
    made = repair([image], [Place(0, face_crop(box, tilt), head())], Inked(), 64)
    result, changed = made.pictures[0], made.changed[0]
    same = (result[:3] == image[:3]).all(0)
    assert torch.equal(result[:3, changed == 0], image[:3, changed == 0])
    assert torch.equal(result[3:], image[3:]), "alpha is not touched"
    assert not bool(same[changed > 0.1].all()), "the face changed"
    assert bool((changed == 0).any()) and float(changed.max()) <= 1
    middle = face_crop(box, tilt).from_picture(torch.tensor([[(box[0] + box[2]) / 2, (box[1] + box[3]) / 2]]))
    assert torch.allclose(middle, torch.tensor([[0.5, 0.46]]), atol=0.5 / 1.8 / (box[3] - box[1]) * 2)


def test_eight_overlapping_faces_in_a_defined_order() -> None:
    image = picture()
    places = [Place(0, face_crop((20 + 5 * i, 30, 44 + 5 * i, 60)), head()) for i in range(8)]

    class Numbered(Inked):
        def restore(self, latents: Tensor, masks: Tensor, faces: Sequence[int]) -> Tensor:
            return torch.stack([torch.full_like(z, f / 10) for z, f in zip(latents, faces, strict=True)])

    made = repair([image], places, Numbered(), 64)
    assert torch.equal(made.pictures[0][:, made.changed[0] == 0], image[:, made.changed[0] == 0])
    for number in range(8):
        x = 32 + 5 * number
        top = min(number + 3, 7)  # of equal size: the later lies on top; a head reaches 17 px from its middle
        assert abs(float(made.pictures[0][0, 43, x]) - top / 10) < 0.03
    large = Patch(Crop(50, 45, 80), torch.ones(3, 64, 64), head())
    small = Patch(Crop(50, 45, 40), torch.zeros(3, 64, 64), head())
    for order in ([large, small], [small, large]):
        assert float(paste(image, order)[0][0, 43, 50]) == 1, "the larger one is nearer"


def test_batches_of_pictures_of_any_size_and_chunks() -> None:
    images = [picture(3, 96, 112, 1), picture(4, 50, 200, 2), picture(3, 64, 64, 3)]
    places = [Place(1, face_crop((20, 10, 40, 34)), head()), Place(0, face_crop((60, 20, 90, 60), 0.5), head()),
              Place(1, face_crop((150, 10, 170, 34)), head())]
    model = Inked()
    chunked = repair(images, places, model, 64, rows=2)
    assert model.chunks == [[0, 1], [2]]
    whole = repair(images, places, Inked(), 64)
    for a, b in zip(chunked.pictures, whole.pictures, strict=True):
        assert torch.equal(a, b)
    assert chunked.pictures[2] is images[2], "a picture without a face to repair is the same tensor"
    assert not bool(chunked.changed[2].any())


def test_nothing_to_do() -> None:
    image = picture()
    made = repair([image], [], Inked(), 64)
    assert made.pictures[0] is image and made.before == [] and not bool(made.changed[0].any())
    empty = repair([image], [Place(0, face_crop(BOXES["middle"]), torch.zeros(64, 64))], Inked(), 64)
    assert torch.equal(empty.pictures[0], image)
    away = repair([image], [Place(0, Crop(-500, -500, 40), head())], Inked(), 64)
    assert torch.equal(away.pictures[0], image)


def test_nan_from_the_model_leaves_the_face_alone() -> None:
    image = picture()
    places = [Place(0, face_crop((20, 30, 40, 55)), head()), Place(0, face_crop((70, 30, 90, 55)), head())]

    class Broken(Inked):
        def decode(self, latents: Tensor) -> Tensor:
            return torch.cat([torch.full_like(latents[:1], math.nan), latents[1:]])

    made = repair([image], places, Broken(), 64)
    assert made.failed == (0,)
    assert torch.equal(made.pictures[0][:, :, :42], image[:, :, :42])
    assert not torch.equal(made.pictures[0], image)


def test_full_mask_fades_at_the_crop_s_border() -> None:
    image = picture()
    crop = Crop(56, 48, 40)
    result, changed = paste(image, [Patch(crop, torch.ones(3, 80, 80), feathered(torch.ones(80, 80)))])
    assert float(changed[48, 56]) == 1 and float(result[0, 48, 56]) == 1
    assert float(changed[48, 36]) < 0.2 and float(changed[48, 35]) == 0


@pytest.mark.parametrize("side", [8, 64, 1000])
def test_cut_and_back_give_the_picture_again(side: int) -> None:
    ramp = torch.linspace(0, 3, 1200)
    smooth = torch.stack([ramp.sin()[None] * ramp.cos()[:, None] * 0.4 + 0.5] * 3)
    for tilt in TILTS:
        crop = face_crop((600 - side / 3, 600 - side / 2, 600 + side / 3, 600 + side / 2), tilt, frame=1.1)
        patch = cut(smooth, crop, 128)
        assert patch.shape == (3, 128, 128)
        back, (x0, y0, x1, y1) = put_back(patch, crop, 1200, 1200)
        inside = put_back(torch.ones(1, 128, 128), crop, 1200, 1200)[0][0] == 1
        assert float((back - smooth[:, y0:y1, x0:x1])[:, inside].abs().max()) < 5e-3


def test_an_upright_crop_lies_on_pixels_and_is_exact_at_its_own_size() -> None:
    image = picture()
    crop = face_crop((40.3, 30.7, 64.2, 60.1))
    size = int(crop.side)
    x0, y0, x1, y1 = crop.bounds(96, 112)
    assert (x1 - x0, y1 - y0) == (size, size) and crop.angle == 0
    assert torch.allclose(cut(image, crop, size), image[:, y0:y1, x0:x1], atol=1e-4)


def test_replicates_the_border() -> None:
    image = picture()
    crop = Crop(0, 48, 20)
    assert torch.allclose(cut(image, crop, 20)[:, :, :9], image[:, 38:58, :1].expand(3, 20, 9), atol=1e-4)


def test_a_turned_face_is_cut_upright_and_put_back_turned() -> None:
    """Eyes drawn on a tilted line stand level in the crop, at the places of an upright face."""
    for degrees in (25, -40, 90, 180, -135):
        angle = math.radians(degrees)
        turn = torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
        middle = torch.tensor([100.0, 90.0])
        eyes = torch.tensor([[-6.0, -3.0], [6.0, -3.0]]) @ turn.T + middle
        assert math.isclose(eye_tilt(eyes), angle, abs_tol=1e-5)
        half = torch.tensor([12.0, 15.0])  # of the face, before turning: 24 x 30
        reach = (turn.square() @ half.square()).sqrt().tolist()  # of the ellipse
        crop = face_crop((100 - reach[0], 90 - reach[1], 100 + reach[0], 90 + reach[1]), angle)
        assert math.isclose(crop.side, 54, rel_tol=1e-4)
        assert face_crop((0, 0, 9, 9), angle, extent=(24, 30)).side == 54
        seen = crop.from_picture(eyes)
        expected = torch.tensor([[-6.0, -3.0], [6.0, -3.0]]) / 54 + torch.tensor([0.5, 0.46])
        assert torch.allclose(seen, expected, atol=1e-4)
        assert torch.allclose(crop.to_picture(seen), eyes, atol=1e-3)


def test_small_tilts_are_left_and_landmarks_may_be_missing() -> None:
    assert face_crop((0, 0, 10, 10), math.radians(9)).angle == 0
    assert face_crop((0, 0, 10, 10), math.radians(11)).angle > 0
    assert face_crop((0, 0, 10, 10), math.radians(60), upright=180).angle == 0
    assert eye_tilt(None) == 0 and eye_tilt(torch.full((5, 2), math.nan)) == 0 and eye_tilt(torch.ones(5, 2)) == 0


def test_masks() -> None:
    hard = ellipse(128)
    rows, columns = hard.sum(1).nonzero().flatten(), hard.sum(0).nonzero().flatten()
    half = 0.5 / 1.8 * 128
    assert abs((0.46 * 128 - int(rows[0])) - 1.35 * half) < 1.5
    assert abs((int(rows[-1]) - 0.46 * 128) - 1.08 * half) < 1.5
    assert abs((int(columns[-1]) - int(columns[0])) - 2 * 1.45 * 0.8 * half) < 2
    points = torch.tensor([[0.4, 0.4], [0.6, 0.4], [0.5, 0.6], [0.5, 0.5]])
    hull = hull_mask(points, 64)
    assert bool((hull[(points[:, 1] * 64).long(), (points[:, 0] * 64).long()] == 1).all())
    grown = hull.nonzero()
    above, below = 0.4 * 64 - int(grown[0, 0]), int(grown[-1, 0]) - 0.6 * 64
    assert above > below + 2, "it grows further up, for the hair"
    assert float(feathered(torch.zeros(32, 32)).max()) == 0
    soft = feathered(hard)
    assert float(soft.min()) >= 0 and float(soft.max()) <= 1 and float(soft[0].max()) == 0
    sharp = feathered(hard, 0)
    assert torch.equal(sharp[1:-1, 1:-1], hard[1:-1, 1:-1])
    assert torch.equal(feathered(hard[None])[0], soft)


def test_gate() -> None:
    boxes = [(0, 0, 20, 30), (30, 0, 90, 90), (100, 0, 220, 150), (200, 0, 204, 5)]
    assert [bool(r) for r in Gate().reasons(boxes)] == [False, False, True, False]
    assert Gate().reasons(boxes)[2] == "large enough (150 px, limit 100)"
    assert Gate(max_px=0, most=1).reasons(boxes)[:3] == ["not among the 1 largest"] * 2 + [None]
    assert Gate(min_px=8).reasons(boxes)[3] == "too small (5 px, least 8)"
    where = torch.zeros(160, 230)
    where[:, :25] = 1
    assert [r is None for r in Gate().reasons(boxes, where)] == [True, False, False, False]

