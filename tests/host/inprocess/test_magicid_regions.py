"""MagicID Regions: masks, boxes, poses and faces become a mask for each person; identity files in their folder."""

from __future__ import annotations

import pytest
import torch
from support.comfy.magicid import halves, people

from likeness.core.errors import LikenessError
from likeness.faces.interface import Face, Faces
from likeness.hosts.comfy.magicid import files
from likeness.hosts.comfy.magicid.identities import Identities
from likeness.hosts.comfy.magicid.regions import regions

IMAGE = torch.rand(1, 60, 100, 3)
FACES = Faces((tuple(Face((x, 20, x + 20, 44), 1.0) for x in (10, 60)),), 60, 100, "test")
BOXES = [[{"x": 60, "y": 10, "width": 30, "height": 40}, {"x": 5, "y": 10, "width": 30, "height": 40}]]


def pose(points, size=(100, 60)):
    body = [v for point in points for v in (*point, 1.0)] + [0.0] * 3 * (18 - len(points))
    return [{"people": [{"pose_keypoints_2d": body}], "canvas_width": size[0], "canvas_height": size[1]}]


def head(x, y):
    """A person of whom nose, eyes and ears are seen."""
    return [(x, y), *[(0, 0)] * 13, (x - 4, y - 4), (x + 4, y - 4), (x - 8, y - 2), (x + 8, y - 2)]


def middles(masks):
    columns = torch.arange(masks.shape[-1]) + 0.5
    return [float((m.sum(0) * columns).sum() / m.sum()) for m in masks]


@pytest.mark.parametrize(
    ("where", "expected"),
    [(FACES, [20, 70]), (BOXES, [75, 20]), (BOXES[0][0], [75]), (halves(), [25, 75]), (pose(head(30, 30)), [30])],
)
def test_every_kind_of_place(where, expected):
    made = regions(where, IMAGE)
    assert made.masks.shape == (len(expected), 60, 100) and made.preview.shape == IMAGE.shape
    assert middles(made.masks) == pytest.approx(expected, abs=2)


def test_the_users_order_and_people_without_a_place(parts):
    three = people(parts.model, 1.0, 1.0, 1.0)
    made = regions(FACES, IMAGE, three, order="3, 0")
    assert made.masks.amax(dim=(1, 2)).tolist() == [0, 0, 1] and middles(made.masks[2:]) == pytest.approx([20], abs=2)
    assert made.note == "1: p2; 2: nobody; no place: p0, p1"


def test_a_draft_without_a_face_leaves_everybody_out(parts):
    made = regions(Faces(((),), 60, 100, "test"), IMAGE, people(parts.model, 1.0, 1.0))
    assert made.masks.shape == (2, 60, 100) and not made.masks.any()


@pytest.mark.parametrize(
    ("where", "image", "order", "said"),
    [
        (Faces(((),), 60, 100, "test"), None, "", "nobody was found"),
        (pose([]), None, "", "no head is seen"),
        (BOXES, None, "", "without their picture"),
        ([[]], IMAGE, "", "no box"),
        ([[{"x": 200, "y": 0, "width": 9, "height": 9}]], IMAGE, "", "box 1 outside"),
        ("left", IMAGE, "", "MagicID Regions: where"),
        (FACES, IMAGE, "4", "MagicID Regions: order"),
    ],
)
def test_bad_places(where, image, order, said):
    with pytest.raises(LikenessError, match=said):
        regions(where, image, order=order)


def test_people_saved_and_loaded(parts, tmp_path, monkeypatch):
    import folder_paths

    monkeypatch.setitem(folder_paths.folder_names_and_paths, files.IDENTITY_FOLDER, ([str(tmp_path)], set()))
    two = people(parts.model, 1.0, 0.5)
    first, second = (files.write_identities(two, "pair", overwrite=False).name for _ in range(2))
    assert files.list_identities() == [first, second] == ["pair.safetensors", "pair_2.safetensors"]
    back = files.read_identities(first, two.loaded)
    assert [(p.name, p.scale) for p in back] == [("p0", 1.0), ("p1", 0.5)]
    assert all(torch.equal(a.tokens, b.tokens) for a, b in zip(back, two.people, strict=True))
    with pytest.raises(LikenessError, match="plain name"):
        files.write_identities(two, "../up", overwrite=True)
    with pytest.raises(LikenessError, match="nobody"):
        files.write_identities(Identities(two.loaded), "none", overwrite=True)
    with pytest.raises(LikenessError, match="encoded by"):
        files.read_identities(first, type(two.loaded)(two.loaded.weights, "another"))
