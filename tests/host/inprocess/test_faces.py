"""Detect Faces, Face Models and Draw Landmarks inside ComfyUI: what they take, what they give, what they refuse."""

from __future__ import annotations

import importlib
import importlib.util
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from likeness_pack.nodes import face_nodes
from likeness_pack.nodes.face_nodes import DetectFaces, DrawLandmarks, FaceModels

from lab.people import draw_person
from likeness.core.errors import LikenessError
from likeness.drawing import pose
from likeness.faces import insightface, opencv, providers
from likeness.faces.geometry import intersection_over_union
from likeness.faces.interface import Face
from likeness.faces.interface import FaceModels as Models
from likeness.hosts.comfy.faces import models, wired

SIDE = 128


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Models and temporary folders of the test's own."""
    import folder_paths

    monkeypatch.setattr(folder_paths, "models_dir", str(tmp_path))
    monkeypatch.setattr(folder_paths, "temp_directory", str(tmp_path / "temp"))
    return tmp_path


@pytest.fixture(scope="module")
def drawn() -> Models:
    with torch.inference_mode():
        return FaceModels.execute(models.MINIATURE).args[0]


@pytest.fixture(scope="module")
def person():
    return draw_person(1, SIDE)


@pytest.fixture
def picture(person) -> torch.Tensor:
    return person.image.permute(1, 2, 0)[None].contiguous()


def run(image, models=None, **inputs):
    """The outputs of Detect Faces, as the host runs nodes."""
    with torch.inference_mode():
        out = DetectFaces.execute(image, models, **inputs)
    return (*out.args, out.ui)


def test_a_face_comes_out_in_every_form(picture, person, drawn):
    faces, overlay, mask, boxes, report, ui = run(picture, drawn)
    (face,) = faces.pictures[0]
    assert intersection_over_union(face.box, person.box) > 0.6 and face.number == 1
    assert (faces.height, faces.width, faces.provider) == (SIDE, SIDE, "miniature")
    assert overlay.shape == picture.shape and (overlay - picture).abs().max() > 0.3
    inside = person.mask.view(1, SIDE, SIDE) > 0.5
    assert mask.shape == (1, SIDE, SIDE) and mask[inside].mean() > 0.9
    assert mask[0, :, [0, -1]].max() == 0 and mask.sum() < 3 * inside.sum(), "the head, not the picture"
    (box,) = boxes[0]
    assert box["x"] == face.box[0] and box["width"] == face.box[2] - face.box[0]
    row = json.loads(report)["table"][0]
    assert row["number"] == 1 and row["chosen"] and row["size"] == pytest.approx(max(face.size), abs=0.1)
    (told,) = ui["likeness_faces"]
    assert told["before"]["type"] == "temp" and told["number"] == 1 and told["chosen"]


def test_nobody_stops_nothing(picture, drawn):
    grey = torch.full_like(picture, 0.5)
    faces, overlay, mask, boxes, report, _ = run(torch.cat([grey, picture]), drawn)
    assert [len(row) for row in faces.pictures] == [0, 1] and boxes[0] == []
    assert mask[0].max() == 0 and mask[1].max() == 1
    assert torch.allclose(overlay[0], grey[0], atol=1 / 255)
    assert json.loads(report)["faces"] == 1
    nothing = run(grey, drawn)
    assert nothing[0].count == 0 and nothing[5] == {"likeness_faces": []}


@pytest.mark.parametrize("kind", ["grey", "rgba", "nan", "bytes", "one picture", "tall", "empty", "no height"])
def test_any_picture_goes_through(picture, drawn, kind):
    given = {
        "grey": picture.mean(dim=-1, keepdim=True),
        "rgba": torch.cat([picture, torch.ones_like(picture[..., :1])], dim=-1),
        "nan": torch.where(torch.rand(1, SIDE, SIDE, 1) < 0.01, torch.nan, picture),
        "bytes": (picture * 255).byte(),
        "one picture": picture[0],
        "tall": torch.cat([picture, torch.full((1, 100, SIDE, 3), 0.5)], dim=1),
        "empty": picture[:0],
        "no height": picture[:, :0],
    }[kind]
    faces, overlay, mask, boxes, _, _ = run(given, drawn)
    assert len(faces) == len(mask) == len(overlay) == len(boxes) == (0 if kind == "empty" else 1)
    assert torch.isfinite(overlay).all()
    if kind not in ("empty", "no height"):
        assert faces.count == 1


@pytest.mark.parametrize("wrong", [None, torch.zeros(4, 4), torch.zeros(1, 8, 8, 9), torch.zeros(1, 1, 8, 8, 3)])
def test_what_is_no_picture_is_refused(wrong, drawn):
    with pytest.raises(LikenessError, match="Detect Faces: image"):
        run(wrong, drawn)


def test_gates(picture, drawn):
    two = torch.cat([picture, picture], dim=2)  # side by side
    faces = run(two, drawn)[0]
    assert [face.number for face in faces.pictures[0]] == [1, 2]
    kept, overlay, mask, _, report, _ = run(two, drawn, which="2")
    assert [face.number for face in kept.pictures[0]] == [2] and kept.pictures[0][0].box[0] > SIDE / 2
    assert mask[0, :, : SIDE // 2].sum() < 0.1 * mask.sum()
    assert [row["chosen"] for row in json.loads(report)["table"]] == [False, True]
    assert not torch.equal(overlay, run(two, drawn)[1])
    for gate in ({"min_px": 200}, {"max_px": 20}, {"which": "none"}, {"where": torch.zeros(1, 4, 4)}):
        assert run(two, drawn, **gate)[0].count == 0
    assert run(two, drawn, at_most=1)[0].count == 1 == run(two, drawn, which="largest")[0].count
    half = torch.tensor([[[0.0, 1.0]]])
    assert run(two, drawn, where=half)[0].pictures[0][0].box[0] > SIDE / 2
    with pytest.raises(LikenessError, match="such as 1,3"):
        run(two, drawn, which="left")
    with pytest.raises(LikenessError, match="3 masks for 1 pictures"):
        run(two, drawn, where=torch.ones(3, 4, 4))


# --- what other nodes have found


def mesh(face) -> dict:
    """A face as the host's MediaPipe node gives it, its 478 points spread over a box."""
    x0, y0, x1, y1 = face
    points = np.random.default_rng(0).uniform((x0, y0), (x1, y1), (478, 2)).astype(np.float32)
    points[0], points[1], points[468], points[473] = (x0, y0), (x1, y1), (x0 + 10, y0 + 10), (x1 - 10, y0 + 10)
    return {
        "bbox_xyxy": np.array(face, np.float32), "landmarks_xy": points, "presence": 3.0, "score": 0.8,
        "landmarks_3d": np.zeros((478, 3)), "blendshapes": {},
    }  # fmt: skip


def test_the_hosts_landmarks(picture):
    value = {"frames": [[mesh((80, 20, 110, 60)), mesh((10, 20, 40, 60))], []], "image_size": (SIDE, SIDE)}
    two = torch.cat([picture, picture])
    faces = run(two, found=value)[0]
    assert [len(row) for row in faces.pictures] == [2, 0] and faces.source == wired.LANDMARKS
    left = faces.pictures[0][0]
    assert left.box == pytest.approx((10, 20, 40, 60)) and left.score == 0.8
    assert left.dense.shape == (478, 2) and left.landmarks.shape == (5, 2) and left.tilt == 0
    with pytest.raises(LikenessError, match="2 pictures for 1 pictures"):
        run(picture, found=value)
    with pytest.raises(LikenessError, match="64 x 64 pixels"):
        run(two, found={**value, "image_size": (64, 64)})


def test_bounding_boxes_in_both_spellings(picture):
    box = {"x": 10, "y": 20.5, "width": 30, "height": 40}
    two = torch.cat([picture, picture])
    for value in (box, [box], [[box], [box]], [[box]]):
        faces = run(two, found=value)[0]
        assert [[face.box for face in row] for row in faces.pictures] == [[(10, 20.5, 40, 60.5)]] * 2
        assert faces.pictures[0][0].score == 1 and faces.source == wired.BOXES
    scored = {**box, "label": "face", "score": 0.5}
    assert run(picture, found=[[scored]])[0].pictures[0][0].score == 0.5
    for nobody in ([], [[]], [[{**box, "width": 0}]], [[{**box, "x": float("nan")}]]):
        assert run(picture, found=nobody)[0].count == 0
    for wrong in ("box", 3, [[{"x": 1}]], [[3]], {"frames_": 1}):
        with pytest.raises(LikenessError, match="Detect Faces: found"):
            run(picture, found=wrong)


def test_face_models_look_into_boxes(picture, person, drawn):
    box = {"x": person.box[0] - 4, "y": person.box[1] - 4, "width": 70, "height": 70}
    (face,) = run(picture, drawn, found=box)[0].pictures[0]
    assert face.landmarks is not None and face.score < 1
    grey = run(torch.full_like(picture, 0.5), drawn, found=box)[0]
    assert grey.count == 1 and grey.pictures[0][0].landmarks is None, "a box stays where no face is seen in it"


def test_our_boxes_are_those_the_host_draws(picture, drawn):
    if importlib.util.find_spec("comfy_extras.nodes_rtdetr") is None:
        pytest.skip("this ComfyUI draws no bounding boxes")
    node = importlib.import_module("comfy_extras.nodes_rtdetr").DrawBBoxes
    boxes = run(picture, drawn)[3]
    out = node.execute(boxes, picture).args[0]
    assert out.shape == picture.shape and not torch.equal(out, picture)


# --- Draw Landmarks


@pytest.mark.parametrize("style", pose.STYLES)
def test_landmarks_of_every_type_are_drawn(picture, style):
    landmarks = {"frames": [[mesh((10, 20, 90, 110))]], "image_size": (SIDE, SIDE)}
    faces = run(picture, found=landmarks)[0]
    keypoints = [20.0, 30.0, 1.0] * 18
    people = {"people": [{"pose_keypoints_2d": keypoints, "face_keypoints_2d": [30.0, 40.0, 1.0] * 70}]}
    frame = {"canvas_width": 64, "canvas_height": 96, **people}
    for value, shape in ((faces, (SIDE, SIDE)), (landmarks, (SIDE, SIDE)), ([frame], (96, 64)), (frame, (96, 64))):
        image = DrawLandmarks.execute(value, style).args[0]
        assert image.shape == (1, *shape, 3) and 0 < image.max() <= 1
    assert DrawLandmarks.execute(replace(faces, pictures=((),)), style).args[0].max() == 0
    with pytest.raises(LikenessError, match="POSE_KEYPOINT"):
        DrawLandmarks.execute(3, style)


# --- Face Models


def test_nothing_installed_is_said_with_the_command(monkeypatch, picture):
    monkeypatch.setattr(providers, "available", lambda folders: [])
    for call in (lambda: FaceModels.execute(models.AUTO), lambda: run(picture)):
        with pytest.raises(LikenessError, match=r"pip install --no-deps facenet-pytorch==2\.5\.3.*miniature"):
            call()


def test_auto_takes_the_best_that_is_there(monkeypatch, folder):
    made = []
    monkeypatch.setattr(providers, "available", lambda folders: ["opencv", "dlib"])
    monkeypatch.setattr(opencv, "YuNetDetector", lambda folders: made.append(folders) or object())
    FaceModels.execute(models.AUTO)
    assert made == [(folder / "opencv",)]


@pytest.mark.parametrize("choice", providers.PROVIDERS)
def test_a_missing_package_names_the_command(monkeypatch, choice):
    import sys

    for name in ("insightface", "cv2", "facenet_pytorch", "mediapipe", "dlib"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(LikenessError, match=rf"Face models: {choice}.*pip install"):
        FaceModels.execute(choice)


def test_packs_are_looked_for_where_others_have_them(folder):
    root = folder / "insightface"
    with pytest.raises(LikenessError, match=r"models/insightface/models/antelopev2/\*\.onnx"):
        insightface.find_pack(models.folders().insightface, "antelopev2")
    nested = root / "models" / "antelopev2" / "antelopev2"
    nested.mkdir(parents=True)
    (nested / "det.onnx").touch()
    with pytest.raises(LikenessError, match="one folder too deep"):
        insightface.find_pack(models.folders().insightface, "antelopev2")
    (root / "models" / "antelopev2" / "det.onnx").touch()
    assert insightface.find_pack(models.folders().insightface).name == "antelopev2"


def test_identity_losses_refuse_what_has_no_gradient():
    class Embedder:
        name, differentiable = "insightface buffalo_l", False

    with pytest.raises(LikenessError, match="no gradient flows"):
        models.private_embedder(Models("x", None, Embedder))


def test_ids_are_for_ever():
    schemas = {node.__name__: node.define_schema() for node in face_nodes.NODES}
    assert {name: one.node_id for name, one in schemas.items()} == {
        "FaceModels": "LikenessFaceModels", "DetectFaces": "LikenessDetectFaces",
        "DrawLandmarks": "LikenessDrawLandmarks",
    }  # fmt: skip
    assert [i.id for i in schemas["DetectFaces"].inputs] == [
        "image", "face_models", "found", "where", "which", "min_px", "max_px", "at_most", "order", "search",
    ]  # fmt: skip
    assert all(i.tooltip for one in schemas.values() for i in one.inputs)


def test_turned_faces(person, drawn):
    """A quarter turn and upside down: found, with their tilt, and the mask turned with them."""
    for quarters, tilt in ((1, -90), (2, 180), (3, 90)):
        image = torch.rot90(person.image, quarters, (1, 2))
        faces, _, mask, *_ = run(image.permute(1, 2, 0)[None], drawn)
        best: Face = max(faces.pictures[0], key=lambda face: face.score)
        assert abs((best.tilt - tilt + 180) % 360 - 180) < 20, (quarters, best.tilt)
        truth = torch.rot90(person.mask.view(1, SIDE, SIDE), quarters, (1, 2)) > 0.5
        assert mask[truth].mean() > 0.7
