"""Every provider behind the interface: hand-made weights where its package is installed, clear errors where not."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from support import onnx_faces

from likeness.core.errors import LikenessError
from likeness.faces import dlib, geometry, insightface, mediapipe, opencv, optional, parsing, providers
from likeness.faces.interface import (
    PARTS,
    Face,
    FaceDetector,
    FaceEmbedder,
    FaceParser,
    LandmarkDetector,
    embed_faces,
    face_crop,
)


def needs(*packages: str) -> pytest.MarkDecorator:
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    return pytest.mark.skipif(bool(missing), reason=f"not tried: {', '.join(missing)} not installed")


def picture(seed: int = 0) -> torch.Tensor:
    return torch.rand(1, 3, 640, 640, generator=torch.Generator().manual_seed(seed))


def folders(root: Path) -> providers.Folders:
    packs, zoo, parsers = ((root / name,) for name in ("insightface", "opencv", "facexlib"))
    return providers.Folders(packs, zoo, parsers, root / "facenet" / "x.pt")


@pytest.fixture(scope="module")
def pack(tmp_path_factory):
    """A folder ``insightface`` with a pack of hand-made networks."""
    root = tmp_path_factory.mktemp("models") / "insightface"
    folder = root / "models" / "buffalo_l"
    onnx_faces.scrfd(folder / "det_10g.onnx")
    onnx_faces.recogniser(folder / "w600k_r50.onnx")
    onnx_faces.landmarks106(folder / "2d106det.onnx")
    return root


@needs("insightface", "onnxruntime", "onnx", "cv2")
class TestInsightFace:
    def test_finds_what_is_planted(self, pack) -> None:
        model = insightface.InsightFace(insightface.find_pack([pack]))
        assert model.name == "insightface buffalo_l"
        assert isinstance(model, FaceDetector | FaceEmbedder) and isinstance(model, LandmarkDetector)
        ((face,), (again,)) = model.detect(torch.cat([picture(), picture(1)]))
        assert face.box == pytest.approx(onnx_faces.BOX) == again.box and face.score == pytest.approx(onnx_faces.SCORE)
        torch.testing.assert_close(face.landmarks, torch.tensor(onnx_faces.POINTS))

    def test_large_pictures_are_looked_at_at_640(self, pack) -> None:
        model = insightface.InsightFace(insightface.find_pack([pack]))
        ((face,),) = model.detect(torch.rand(1, 3, 1280, 960))
        assert face.box == pytest.approx([2 * at for at in onnx_faces.BOX])

    def test_vectors_are_those_of_the_package(self, pack) -> None:
        """The package warps with whole numbers of 1/32 pixel, ours exactly."""
        model, image = insightface.InsightFace(insightface.find_pack([pack])), picture()
        bgr = optional.bgr_bytes(image)[0]
        theirs = torch.from_numpy(model.app.get(bgr)[0].embedding)
        face = model.detect(image)[0][0]
        raw = model.embed_raw(geometry.norm_crop(image, face.landmarks[None]))[0]
        assert (raw - theirs).abs().max() < 0.05 * theirs.abs().max()
        vector = embed_faces(model, image[0], [face])[0]
        assert vector.norm() == pytest.approx(1, abs=1e-5) and vector @ theirs / theirs.norm() > 0.999

    def test_landmarks(self, pack) -> None:
        model = insightface.InsightFace(insightface.find_pack([pack]))
        box = torch.tensor([onnx_faces.BOX])
        points = model.landmarks(picture(), box)
        assert points.shape == (1, 106, 2)
        torch.testing.assert_close(points[0, 1], torch.tensor(geometry.centre(onnx_faces.BOX)), atol=1.5, rtol=0)
        assert points[0, 0, 0] < points[0, 1, 0] and points[0, 0, 1] > points[0, 1, 1]

    def test_packs_that_lack_parts_say_so(self, pack, tmp_path) -> None:
        folder = tmp_path / "models" / "antelopev2"
        onnx_faces.scrfd(folder / "scrfd_10g_bnkps.onnx")
        model = insightface.InsightFace(insightface.find_pack([tmp_path]))
        with pytest.raises(LikenessError, match="has no network for recognition"):
            model.embed(torch.zeros(1, 3, 112, 112))
        assert providers.load("insightface", providers.Folders((tmp_path,), (), (), tmp_path)).make_landmarker is None
        (folder / "scrfd_10g_bnkps.onnx").write_bytes(b"version https://git-lfs.github.com/spec/v1")
        with pytest.raises(LikenessError, match="cannot be loaded"):
            insightface.InsightFace(folder)

    def test_auto_prefers_it(self, pack) -> None:
        there = folders(pack.parent)
        assert providers.available(there)[0] == "insightface" == providers.best(there)
        models = providers.load("insightface", there)
        assert models.make_embedder() is models.detector is models.make_landmarker()


@needs("cv2", "onnx")
class TestOpenCV:
    def test_finds_what_is_planted(self, tmp_path) -> None:
        onnx_faces.yunet(tmp_path / opencv.DETECTOR)
        ((face,),) = opencv.YuNetDetector([tmp_path]).detect(picture())
        assert face.box == pytest.approx(onnx_faces.BOX, abs=1) and face.score == pytest.approx(0.875, abs=0.01)
        torch.testing.assert_close(face.landmarks, torch.tensor(onnx_faces.POINTS), atol=1.0, rtol=0)

    def test_vectors(self, tmp_path) -> None:
        onnx_faces.recogniser(tmp_path / opencv.EMBEDDER, 128)
        embedder = opencv.SFaceEmbedder([tmp_path])
        face = Face(onnx_faces.BOX, 0.9, torch.tensor(onnx_faces.POINTS))
        other = picture()[0] * torch.linspace(0, 1, 640)
        crops = torch.cat([face_crop(embedder, image, face) for image in (picture()[0], other)])
        vectors = embedder.embed(crops)
        assert vectors.shape == (2, 128) and torch.allclose(vectors.norm(dim=1), torch.ones(2), atol=1e-5)
        assert vectors[0] @ vectors[1] < 0.999, "of these two pictures"
        assert torch.allclose(vectors, torch.cat([embedder.embed(crop[None]) for crop in crops]), atol=1e-6)

    def test_files_are_named(self, tmp_path) -> None:
        for make, name in ((opencv.YuNetDetector, opencv.DETECTOR), (opencv.SFaceEmbedder, opencv.EMBEDDER)):
            with pytest.raises(LikenessError, match=rf"models/opencv/{name}.*opencv_zoo"):
                make([tmp_path])
            (tmp_path / name).write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
            with pytest.raises(LikenessError, match="Git LFS pointer"):
                make([tmp_path])


def test_rows_of_yunet_are_read() -> None:
    row = np.array([10, 20, 30, 40, *range(10), 1.2], np.float32)
    face = opencv.read_row(row)
    assert face.box == (10, 20, 40, 60) and face.score == 1.0
    assert face.landmarks.tolist() == [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9]]


@pytest.mark.parametrize("network", parsing.NETWORKS, ids=lambda network: network.make)
@needs("facexlib", "torchvision", "cv2")
def test_parsers_are_loaded_and_speak_one_language(network, tmp_path) -> None:
    made = getattr(importlib.import_module(network.module), network.make)(**network.arguments)
    torch.save(made.state_dict(), tmp_path / network.file)
    parser = parsing.Parser([tmp_path])
    assert isinstance(parser, FaceParser) and parser.name == network.make.lower()
    crops = torch.rand(1, 3, 512, 512)
    labels = parser.parse(crops)
    assert labels.shape == (1, 512, 512) and labels.max() < len(PARTS)
    mean, deviation = (torch.tensor(v).view(1, 3, 1, 1) for v in (network.mean, network.deviation))
    with torch.no_grad():
        raw = made.eval()((crops - mean) / deviation)[0].argmax(dim=1)
    named = [network.parts[i] for i in raw.unique().tolist()]
    assert {PARTS[i] for i in labels.unique().tolist()} == set(named)
    (tmp_path / network.file).write_bytes(b"no weights")
    with pytest.raises(LikenessError, match="once more"):
        parsing.Parser([tmp_path])


def test_parsers_name_their_file(tmp_path) -> None:
    with pytest.raises(LikenessError, match=r"models/facexlib/parsing_bisenet\.pth"):
        parsing.Parser([tmp_path])
    assert not parsing.available([tmp_path])


def test_both_parsers_know_the_same_parts() -> None:
    assert sorted(parsing.PARSENET_PARTS) == sorted(PARTS) and len(set(PARTS)) == 19
    assert PARTS[17] == "hair" == parsing.PARSENET_PARTS[13] and PARTS[10] == "nose" == parsing.PARSENET_PARTS[2]


def test_mediapipe_without_weights_is_told(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "mediapipe", SimpleNamespace(__version__="1.2.2"))
    with pytest.raises(LikenessError, match=r"mediapipe 1\.2\.2, which brings no weights.*mediapipe==0\.10\.14"):
        mediapipe.MediaPipeDetector()


def test_mediapipe_borrows_an_embedder(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(mediapipe, "MediaPipeDetector", lambda: SimpleNamespace(name="mediapipe"))
    for module in (insightface, dlib):
        monkeypatch.setattr(module, "available", lambda *given: False)
    models = providers.load("mediapipe", folders(tmp_path))
    with pytest.raises(LikenessError, match="it only finds faces"):
        models.make_embedder()
    monkeypatch.setattr(dlib, "available", lambda: True)
    monkeypatch.setattr(dlib, "DlibEmbedder", lambda: SimpleNamespace(name="dlib"))
    assert providers.load("mediapipe", folders(tmp_path)).make_embedder().name == "dlib"


def test_dlib_names_its_package_of_weights(monkeypatch) -> None:
    monkeypatch.setattr(dlib, "WEIGHTS", "no_such_package_of_weights")
    with pytest.raises(LikenessError, match="pip install --no-deps dlib-bin"):
        dlib.weights(dlib.POINTS)
    assert not dlib.available()


def test_looking_for_packages_imports_none(tmp_path) -> None:
    before = set(sys.modules)
    providers.available(folders(tmp_path))
    new = {name.partition(".")[0] for name in set(sys.modules) - before}
    assert not new & {"insightface", "cv2", "facenet_pytorch", "mediapipe", "dlib", "onnxruntime", "facexlib"}


def test_a_package_that_breaks_on_import_is_told(monkeypatch, tmp_path) -> None:
    (tmp_path / "broken_for_faces.py").write_text("raise AttributeError('numpy 2')")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(LikenessError, match=r"cannot be imported \(numpy 2\).*Run there: pip install x"):
        optional.package("x", "broken_for_faces", "pip install x")


def test_aligned_embedders_need_landmarks() -> None:
    embedder = SimpleNamespace(aligned=True, name="x", size=112)
    with pytest.raises(LikenessError, match="a face without landmarks"):
        face_crop(embedder, torch.zeros(3, 9, 9), Face((0, 0, 9, 9), 1.0))
