"""Face models: geometry, the miniature's provider, and what the optional package is asked for."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from support.persona_tiny import photo

from lab.people import draw_person
from likeness.core.errors import LikenessError
from likeness.faces import facenet
from likeness.faces.interface import Face, FaceDetector, FaceEmbedder, largest_face
from likeness.miniature.faces import MiniatureDetector, MiniatureEmbedder
from likeness.training.persona.identity import Identifier
from likeness.training.persona.photos import ellipse_mask


@pytest.fixture
def package(monkeypatch):
    """Stands for facenet-pytorch: a detector with given answers, a small network as embedder."""

    class MTCNN(torch.nn.Module):
        answer = (None, [None], None)

        def __init__(self, **options):
            super().__init__()

        def detect(self, picture, landmarks):
            assert picture.dtype == np.uint8 and picture.ndim == 3 and picture.shape[-1] == 3
            return self.answer

    class InceptionResnetV1(torch.nn.Module):
        def __init__(self, pretrained, classify):
            super().__init__()
            assert pretrained is None, "that would download"
            self.line = torch.nn.Linear(3, 512)

        def forward(self, x):
            return self.line(x.mean(dim=(2, 3)))

    made = SimpleNamespace(MTCNN=MTCNN, InceptionResnetV1=InceptionResnetV1)
    monkeypatch.setitem(sys.modules, facenet.PACKAGE, made)
    return made


def test_missing_package_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, facenet.PACKAGE, None)
    with pytest.raises(LikenessError, match=r"extra 'faces'.*pip install --no-deps facenet-pytorch==2\.5\.3"):
        facenet.FacenetDetector()


def test_missing_weights_say_where_to_put_them(package, tmp_path):
    with pytest.raises(LikenessError, match=r"models/facenet/20180402-114759-vggface2\.pt"):
        facenet.FacenetEmbedder(tmp_path / "facenet" / facenet.WEIGHTS)


@pytest.mark.parametrize("content", [b"no weights", {"other.weight": torch.zeros(3)}, [1, 2]])
def test_wrong_weights_are_refused(package, tmp_path, content):
    path = tmp_path / facenet.WEIGHTS
    path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
    with pytest.raises(LikenessError, match="once more"):
        facenet.FacenetEmbedder(path)


def test_embedder_takes_the_file_without_its_classes_and_has_a_gradient(package, tmp_path):
    path = tmp_path / facenet.WEIGHTS
    state = package.InceptionResnetV1(None, False).state_dict()
    torch.save({**state, "logits.weight": torch.zeros(8631, 512)}, path)
    embedder = facenet.FacenetEmbedder(path)
    assert isinstance(embedder, FaceEmbedder)
    crops = torch.rand(2, 3, embedder.size, embedder.size, requires_grad=True)
    vectors = embedder.embed(crops)
    assert vectors.shape == (2, embedder.width)
    assert torch.allclose(vectors.norm(dim=1), torch.ones(2), atol=1e-5)
    vectors[:, 0].sum().backward()
    assert crops.grad.abs().max() > 0 and all(p.grad is None for p in embedder.model.parameters())


def test_detector_sorts_and_drops_uncertain_faces(package):
    boxes = np.array([[0, 0, 9, 9], [1, 1, 5, 5], [2, 2, 4, 4]])
    package.MTCNN.answer = (boxes, np.array([0.95, 0.99, 0.5]), np.zeros((3, 5, 2)))
    detector = facenet.FacenetDetector()
    assert isinstance(detector, FaceDetector)
    (faces,) = detector.detect(torch.rand(1, 3, 32, 40))
    assert [face.box for face in faces] == [(1, 1, 5, 5), (0, 0, 9, 9)]
    package.MTCNN.answer = (None, [None], None)
    assert detector.detect(torch.rand(2, 3, 32, 40)) == [[], []]
    assert detector.detect(torch.rand(1, 3, 8, 8)) == [[]], "smaller than any face it looks for"


def test_largest_face():
    small, large = Face((0, 0, 4, 4), 0.99), Face((5, 5, 20, 20), 0.6)
    assert largest_face([small, large]) is large
    assert largest_face([]) is None


def test_ellipse_covers_the_box_and_little_more():
    box = (20.0, 30.0, 60.0, 80.0)
    mask = ellipse_mask(box, 120, 100)
    assert mask.shape == (1, 120, 100) and set(mask.unique().tolist()) == {0.0, 1.0}
    inside = torch.zeros(1, 120, 100)
    inside[:, 30:80, 20:60] = 1
    assert (mask * inside).sum() > 0.9 * inside.sum()
    assert 1.0 < mask.sum() / inside.sum() < 1.6
    assert mask[0, :, 10].sum() == 0 and mask[0, 100:].sum() == 0


def test_miniature_finds_a_drawn_face_and_its_vector_follows_the_pixels():
    person = draw_person(1, 128)
    (faces,) = MiniatureDetector().detect(person.image[None])
    identify = Identifier(MiniatureEmbedder())
    marked = identify.reference(photo(), person.image, faces)
    assert marked.box == largest_face(faces).box
    pixels = person.image[None].clone().requires_grad_()
    similarity = identify(pixels, [marked]) @ marked.identity
    assert similarity.item() == pytest.approx(1, abs=1e-4)
    identify(pixels * 0.8, [marked])[0, 0].backward()
    assert torch.isfinite(pixels.grad).all() and pixels.grad.abs().max() > 0
    with pytest.raises(LikenessError, match="no face found"):
        identify.reference(photo(), person.image, [])
