"""POSE_KEYPOINT in the spellings of its sources, and landmark sets read as others."""

from __future__ import annotations

import importlib.util
from itertools import pairwise

import pytest
import torch

from likeness.core.errors import LikenessError
from likeness.faces.keypoints import BODY, FACE, face_of, faces_of, parse
from likeness.faces.landmarks import IBUG_LINES, IBUG_OF, MESH_LINES, MESH_PUPILS, ibug, openpose_face

BODY_POINTS = torch.rand(BODY, 2, generator=torch.Generator().manual_seed(0)) * 80 + 10
FACE_POINTS = torch.rand(FACE, 2, generator=torch.Generator().manual_seed(1)) * 30 + 20


def flat(points: torch.Tensor, confidence: float = 1.0) -> list[float]:
    return [value for x, y in points.tolist() for value in (x, y, confidence)]


def frame(body, face, width: int = 100, height: int = 120, **more) -> dict:
    person = {"pose_keypoints_2d": body, "face_keypoints_2d": face, **more}
    return {"people": [person], "canvas_width": width, "canvas_height": height}


def test_dwpose_gives_pixels_and_zeros_for_what_is_missing() -> None:
    body = flat(BODY_POINTS)
    body[9:12] = [0, 0, 0]
    (pose,) = parse([frame(body, flat(FACE_POINTS), hand_left_keypoints_2d=None)])
    assert (pose.height, pose.width) == (120, 100)
    (person,) = pose.people
    known = [i for i in range(BODY) if i != 3]
    torch.testing.assert_close(person.body[known], BODY_POINTS[known])
    assert person.body[3].isnan().all() and not person.face.isnan().any()


def test_openpose_gives_shares_of_the_padded_picture() -> None:
    """100 x 120 pixels are padded to 128 x 128; missing face points are negative shares with full confidence."""
    face = flat(FACE_POINTS / 128)
    face[0:3] = [-1 / 100, -1 / 120, 1.0]
    (pose,) = parse(frame(flat(BODY_POINTS / 128), face))
    torch.testing.assert_close(pose.people[0].body, BODY_POINTS, rtol=1e-5, atol=1e-3)
    assert pose.people[0].face[0].isnan().all()
    torch.testing.assert_close(pose.people[0].face[1:], FACE_POINTS[1:], rtol=1e-5, atol=1e-3)


def test_the_hosts_sdpose_gives_real_confidences_and_minus_one() -> None:
    body = flat(BODY_POINTS, 0.5)
    body[3:6], body[8] = [-1.0, -1.0, 0.9], 0.1
    (pose,) = parse([frame(body, flat(FACE_POINTS, 0.31), foot_keypoints_2d=[1.0, 2.0, 0.5])])
    missing = pose.people[0].body.isnan().any(dim=1)
    assert missing.tolist() == [i in (1, 2) for i in range(BODY)]
    assert not pose.people[0].face.isnan().any()


def test_parts_and_people_may_be_missing() -> None:
    poses = parse([frame(flat(BODY_POINTS), None), {"people": [], "canvas_width": 100, "canvas_height": 120}])
    assert [len(pose.people) for pose in poses] == [1, 0] and poses[0].people[0].face.isnan().all()
    assert parse([frame(None, [1.0, 2.0])])[0].people[0].face.isnan().all(), "less than a point"


def test_people_stand_left_to_right() -> None:
    left, right = flat(BODY_POINTS * 0.5), flat(BODY_POINTS * 0.5 + 50)
    both = {**frame(right, None), "people": [{"pose_keypoints_2d": p} for p in (right, left)]}
    (pose,) = parse(both)
    assert pose.people[0].body[:, 0].mean() < pose.people[1].body[:, 0].mean()


def test_what_is_no_pose_is_refused() -> None:
    for wrong in (3, "pose", [{"people": []}], [3], None):
        with pytest.raises(LikenessError, match="POSE_KEYPOINT"):
            parse(wrong)
    with pytest.raises(LikenessError, match="different sizes"):
        parse([frame(None, None), frame(None, None, width=64)])


def test_people_have_faces() -> None:
    (pose,) = parse(frame(flat(BODY_POINTS), flat(FACE_POINTS)))
    face = face_of(pose.people[0])
    assert face.dense.shape == (FACE, 2) and face.landmarks.shape == (5, 2)
    assert face.box[1] < FACE_POINTS[:68, 1].min(), "the points end at the brows"
    head = torch.full((BODY, 2), torch.nan)
    head[[14, 15]] = torch.tensor([[40.0, 50.0], [60.0, 50.0]])
    face = face_of(parse(frame(flat(torch.nan_to_num(head)), None))[0].people[0])
    assert face.size == (50.0, 65.0) and face.centre == (50.0, 50.0) and face.landmarks is None
    head[15] = torch.nan
    assert face_of(parse(frame(flat(torch.nan_to_num(head)), None))[0].people[0]) is None
    faces = faces_of(parse([frame(flat(BODY_POINTS), flat(FACE_POINTS)), frame(None, None)]))
    assert [len(row) for row in faces.pictures] == [1, 0] and faces.pictures[0][0].number == 1


def test_tables_hold_each_point_once() -> None:
    for indices in IBUG_OF.values():
        assert len(indices) == len(set(indices)) == 68
    assert {i for lines in IBUG_LINES.values() for line in lines for i in line} <= set(range(68))
    assert ibug(torch.zeros(5, 2)) is None and openpose_face(torch.zeros(5, 2)) is None
    for count in (68, 106, 478):
        points = torch.rand(count, 2)
        assert openpose_face(points).shape == (70, 2)


def test_mesh_lines_are_mediapipes_own() -> None:
    if importlib.util.find_spec("mediapipe") is None:
        pytest.skip("mediapipe is not installed: its lines cannot be compared")
    from mediapipe.python.solutions import face_mesh_connections as theirs

    names = {"oval": "FACE_OVAL", "lips": "LIPS", "left eye": "LEFT_EYE", "left brow": "LEFT_EYEBROW",
             "right eye": "RIGHT_EYE", "right brow": "RIGHT_EYEBROW"}  # fmt: skip
    assert set(names) == set(MESH_LINES)
    for part, name in names.items():
        ours = {frozenset(pair) for line in MESH_LINES[part] for pair in pairwise(line)}
        assert ours == {frozenset(pair) for pair in getattr(theirs, f"FACEMESH_{name}")}
    assert MESH_PUPILS == {"right pupil": 468, "left pupil": 473}
