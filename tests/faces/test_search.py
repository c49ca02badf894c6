"""Finding faces on tiles and turned views, and the miniature's detector on turned and small faces."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
import torch
from scipy import ndimage

from lab.people import draw_person
from likeness.faces import geometry, search
from likeness.faces.find import find_faces, with_landmarks
from likeness.faces.interface import Face, FaceModels
from likeness.faces.masks import head_ellipse, head_mask
from likeness.miniature.faces import MiniatureDetector, miniature_models
from likeness.miniature.world import sample_picture
from likeness.miniature.world.render import ground_truth, render

#: left eye red, right eye green, mouth blue, in a face of 100 pixels
MARKS = torch.tensor([[30.0, 35.0], [70.0, 35.0], [50.0, 75.0]])


def draw(faces: list[tuple[float, float, float, float]], height: int = 600, width: int = 800) -> torch.Tensor:
    """A picture ``3 H W`` with faces (x, y of the middle, size, degrees), each three coloured discs."""
    ys, xs = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    image = torch.zeros(3, height, width)
    for x, y, size, degrees in faces:
        for channel, (px, py) in enumerate(marks(x, y, size, degrees).tolist()):
            image[channel] += (((xs - px) ** 2 + (ys - py) ** 2) < (0.12 * size) ** 2).float()
    return image.clamp(0, 1)


def marks(x: float, y: float, size: float, degrees: float) -> torch.Tensor:
    turn = math.radians(degrees)
    rotation = torch.tensor([[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]])
    return (MARKS - 50) / 100 * size @ rotation.T + torch.tensor([x, y])


class ColourDetector:
    """Sees the faces of :func:`draw` that are large enough and upright enough, from the middles of their discs."""

    name = "colours"
    working_side = 400
    smallest = 20
    tilt_range = 45.0

    def __init__(self) -> None:
        self.looks = 0

    def detect(self, images: torch.Tensor) -> list[list[Face]]:
        self.looks += len(images)
        return [self._faces(image) for image in images]

    def _faces(self, image: torch.Tensor) -> list[Face]:
        places = [middles(channel) for channel in image]
        found = []
        for red in places[0]:
            near = [min(others, key=lambda p: math.dist(p, red), default=None) for others in places[1:]]
            if None not in near and (face := self._face(red, *near)):
                found.append(face)
        return found

    def _face(self, red, green, blue) -> Face | None:
        size = math.dist(red, green) / 0.4
        five = torch.tensor([red, green, blue, blue, blue])
        if size < self.smallest or abs(geometry.tilt(five)) > self.tilt_range:
            return None
        if not 0.3 < math.dist(red, blue) / size < 0.6:  # of another face
            return None
        down = torch.tensor([green[1] - red[1], red[0] - green[0]]).neg()
        middle = (torch.tensor(red) + torch.tensor(green)) / 2 + down / down.norm() * 0.15 * size
        x, y = middle.tolist()
        return Face((x - size / 2, y - size / 2, x + size / 2, y + size / 2), 0.9, five)


def middles(channel: torch.Tensor) -> list[tuple[float, float]]:
    labels, count = ndimage.label(channel.numpy() > 0.5)
    spots = ndimage.center_of_mass(np.ones_like(labels), labels, range(1, count + 1))
    return [(float(x) + 0.5, float(y) + 0.5) for y, x in spots]


def models(detector) -> FaceModels:
    return FaceModels(detector.name, detector, lambda: None)


def test_a_large_face_needs_one_look() -> None:
    detector = ColourDetector()
    (faces,) = find_faces(draw([(300, 200, 200, 20)])[None], models(detector)).pictures
    assert len(faces) == 1 and detector.looks == 1
    assert faces[0].centre == pytest.approx((300, 200), abs=4) and faces[0].tilt == pytest.approx(20, abs=2)


@pytest.mark.parametrize("size", [12, 18, 30])
def test_small_faces_are_found_on_tiles_wherever_they_are(size: float) -> None:
    """Sizes that are below what the detector sees of the whole picture, which it halves."""
    truth = [(30.0, 25.0, size, 0.0), (400.0, 300.0, size, 0.0), (399.0, 101.0, size, 0.0), (770.0, 580.0, size, 0.0)]
    image = draw(truth)[None]
    assert find_faces(image, models(ColourDetector()), effort=search.QUICK).count == 0
    (faces,) = find_faces(image, models(ColourDetector())).pictures
    assert len(faces) == 4, "each once"
    for face, (x, y, _, _) in zip(faces, sorted(truth), strict=True):
        assert face.centre == pytest.approx((x, y), abs=1.5)
        assert max(face.size) == pytest.approx(size, rel=0.15)
        torch.testing.assert_close(face.landmarks[:3], marks(x, y, size, 0), atol=1.0, rtol=0)


@pytest.mark.parametrize("degrees", [60.0, 90.0, 135.0, 180.0, -100.0])
def test_turned_faces_come_back_with_their_tilt(degrees: float) -> None:
    image = draw([(250, 300, 160, degrees)])[None]
    assert find_faces(image, models(ColourDetector()), effort=search.QUICK).count == 0
    (face,) = find_faces(image, models(ColourDetector())).pictures[0]
    assert abs((face.tilt - degrees + 180) % 360 - 180) < 2
    assert face.centre == pytest.approx((250, 300), abs=4) and max(face.size) == pytest.approx(160, rel=0.05)
    torch.testing.assert_close(face.landmarks[:3], marks(250, 300, 160, degrees), atol=3.0, rtol=0)


def test_thorough_finds_the_one_upside_down_among_the_upright() -> None:
    image = draw([(200, 200, 150, 0), (550, 350, 150, 180)])[None]
    assert find_faces(image, models(ColourDetector())).count == 1
    (faces,) = find_faces(image, models(ColourDetector()), effort=search.THOROUGH).pictures
    assert [round(abs(face.tilt)) for face in faces] == [0, 180]


def test_the_search_can_be_ended() -> None:
    class Stop(Exception):
        pass

    def tick() -> None:
        raise Stop

    with pytest.raises(Stop):
        find_faces(draw([])[None], models(ColourDetector()), tick=tick)


def test_turned_views_map_back_exactly() -> None:
    views = torch.zeros(1, 1, 60, 100)
    views[..., 10:12, 80:82] = 1
    for degrees in (0, 45, 90, 135, 180, 270):
        turned, back = search.turned_views(views, degrees)
        ys, xs = (turned[0, 0] > 0.3).nonzero(as_tuple=True)
        spot = torch.tensor([[float(xs.float().mean()) + 0.5, float(ys.float().mean()) + 0.5]])
        torch.testing.assert_close(geometry.apply_transform(back, spot), torch.tensor([[81.0, 11.0]]), atol=0.6, rtol=0)


def test_one_face_at_one_place() -> None:
    old = [Face((0, 0, 10, 10), 0.7)]
    inside, certain, elsewhere = Face((2, 2, 6, 6), 0.75), Face((1, 0, 11, 10), 0.95), Face((50, 50, 60, 60), 0.6)
    assert search.merged(old, [inside, elsewhere]) == [*old, elsewhere]
    assert search.merged(old, [certain, inside]) == [certain]


def test_pictures_without_pixels_hold_nobody() -> None:
    for shape in ((0, 3, 8, 8), (2, 3, 0, 8), (1, 3, 1, 1), (1, 3, 5, 900)):
        faces = find_faces(torch.zeros(shape), models(ColourDetector()))
        assert len(faces) == shape[0] and faces.count == 0


def test_dense_landmarks_are_placed_upright() -> None:
    class Landmarker:
        name = "dense"

        def landmarks(self, images, boxes):
            assert images.shape[-1] == images.shape[-2]
            middle = (boxes[:, None, :2] + boxes[:, None, 2:]) / 2
            width = boxes[:, None, 2:3] - boxes[:, None, :1]
            grid = torch.linspace(-0.5, 0.5, 68)[None, :, None] * width * torch.tensor([1.0, 0.0])
            return middle + grid  # a line along the upright face's width

    tilted = Face((100.0, 100.0, 200.0, 200.0), 0.9, turned=90.0)
    faces = find_faces(torch.zeros(1, 3, 300, 300), models(ColourDetector()))
    faces = type(faces)(((tilted,),), 300, 300, "x")
    both = FaceModels("x", ColourDetector(), lambda: None, Landmarker)
    (face,) = with_landmarks(torch.zeros(1, 3, 300, 300), faces, both).pictures[0]
    assert face.dense[0].tolist() == pytest.approx([150, 100], abs=0.5), "90 degrees: left is up"
    assert face.dense[-1].tolist() == pytest.approx([150, 200], abs=0.5)


def test_the_head_turns_with_its_face() -> None:
    face = Face((40.0, 50.0, 60.0, 80.0), 1.0)
    upright = head_ellipse(face, 120, 100)
    turned = head_ellipse(Face((35.0, 55.0, 65.0, 75.0), 1.0, turned=90.0, extent=(20.0, 30.0)), 120, 100)
    assert upright[46, 50] == 1 and upright[84, 50] == 0, "more above than below"
    assert float(upright.sum()) == pytest.approx(float(turned.sum()), rel=0.03)
    assert turned[65, 69] == 1 and turned[65, 31] == 0, "its top is on the right"


def test_a_parsed_head_replaces_the_ellipse_if_it_is_likely() -> None:
    class Parser:
        name, size, label = "p", 64, 17

        def parse(self, crops):
            ramp = torch.linspace(-1, 1, self.size)
            disc = (ramp[:, None] ** 2 + ramp[None] ** 2) < 0.3
            return torch.where(disc, self.label, 0).expand(len(crops), -1, -1)

    image, face = torch.rand(3, 120, 100), Face((30.0, 40.0, 70.0, 90.0), 1.0)
    ellipse, parsed = head_mask(image, face), head_mask(image, face, Parser())
    assert not torch.equal(parsed, ellipse) and parsed[65, 50] == 1 and parsed[5, 5] == 0
    nothing = Parser()
    nothing.label = 0
    assert torch.equal(head_mask(image, face, nothing), ellipse)


# --- the miniature's detector


@pytest.mark.parametrize("degrees", [0, 30, 90, 180, -120])
def test_drawn_faces_are_found_turned_with_their_tilt(degrees: int) -> None:
    """Plain portraits of held-out people, turned about the middle of the picture."""
    errors, found = [], 0
    for number in range(6):
        person = draw_person(number, 128)
        image, _ = search.turned_views(person.image[None], -degrees)
        (faces,) = find_faces(image, miniature_models()).pictures
        best = max(faces, key=lambda face: face.score, default=None)
        found += best is not None
        if best is not None:
            errors.append(abs((best.tilt - degrees + 180) % 360 - 180))
    assert found >= 5
    assert np.median(errors) < 10


def test_tiles_find_drawn_faces_that_one_look_misses() -> None:
    """Full bodies drawn at 64 pixels, faces of 6 to 20 pixels, in a plain picture of 256."""
    rng = random.Random(3)
    quick = auto = 0
    for _ in range(8):
        person = sample_picture(rng, held_out=True, people=1, shot="full body")
        small = torch.from_numpy(render(person, 64)).permute(2, 0, 1).float() / 255
        image = torch.full((1, 3, 256, 256), 0.6)
        image[0, :, 150:214, 100:164] = small
        x0, y0, x1, y1 = ground_truth(person, 64)[0].box
        truth = (x0 + 100, y0 + 150, x1 + 100, y1 + 150)

        def seen(effort: str, image=image, truth=truth) -> bool:
            faces = find_faces(image, miniature_models(), effort=effort).pictures[0]
            return any(geometry.intersection_over_union(face.box, truth) > 0.4 for face in faces)

        quick, auto = quick + seen(search.QUICK), auto + seen(search.AUTO)
    assert auto >= 4 > quick


def test_pictures_that_are_not_square_are_not_squeezed() -> None:
    person = draw_person(2, 128)
    wide = torch.cat([person.image, torch.full((3, 128, 128), 0.6)], dim=2)
    (faces,) = MiniatureDetector().detect(wide[None])
    assert geometry.intersection_over_union(faces[0].box, person.box) > 0.6
