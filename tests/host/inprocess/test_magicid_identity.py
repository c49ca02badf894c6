"""People from photos: whose face counts, how photos are combined, and what the node says to input it cannot use."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from support.comfy import tiny
from support.comfy.magicid import weights

from likeness.core.errors import LikenessError
from likeness.core.magicid.encoder import EncoderShape, build_encoder
from likeness.faces.interface import Face, FaceModels
from likeness.formats.identity import FACEID_PLUS_V2, INSTANTID, IdentityWeights
from likeness.hosts.comfy.magicid import files
from likeness.hosts.comfy.magicid.identities import ALL, MEAN, LoadedWeights, chained, identity_from

SIDE, VECTOR, TOKENS = 64, 6, 4
PHOTO = torch.rand(1, SIDE, SIDE, 3, generator=torch.Generator().manual_seed(1))
LARGE, SMALL = ((10, 10, 50, 50), (2, 2, 12, 12))


class Detector:
    """Finds the boxes it was given, whatever the picture; none in a black one."""

    name = "given"

    def __init__(self, *boxes):
        self.boxes = boxes

    def detect(self, images):
        return [[Face(box, 0.9) for box in self.boxes] if image.any() else [] for image in images]


class Embedder:
    """Mean colours of the crop's quarters."""

    name, size, width, margin = "given", 16, VECTOR, 0.0
    aligned, differentiable, same_person, euclidean = False, False, 0.5, False

    def embed(self, crops):
        return torch.nn.functional.normalize(crops.mean(dim=3)[..., ::8].flatten(1), dim=1)


class Vision:
    """CLIP-Vision's output, ``width`` channels of it."""

    def __init__(self, width):
        self.width = width

    def encode_image(self, images, crop):
        return {"penultimate_hidden_states": images.mean(dim=(1, 2))[:, None, :1].expand(-1, 9, self.width)}


def reads(loaded, *boxes, **more):
    return replace(loaded, face_models=FaceModels("given", Detector(*boxes), Embedder), **more)


@pytest.fixture
def loaded(parts):
    return reads(weights(parts.model), LARGE)


def plus_v2(width=12):
    """Weights that look at the picture, too."""
    attention = {"heads": 2, "head_width": 8, "depth": 1}
    shape = EncoderShape("face", tiny.CONTEXT_WIDTH, TOKENS, VECTOR, picture_width=width, **attention)
    return LoadedWeights.of(IdentityWeights("plusv2.bin", FACEID_PLUS_V2, build_encoder(shape), ()))


def test_one_photo_and_several(loaded):
    one, note = identity_from(loaded, PHOTO, "ann")
    assert one.tokens.shape == (TOKENS, tiny.CONTEXT_WIDTH) == one.nobody.shape
    assert note == f"ann: a face in 1 of 1 photos, {TOKENS} tokens"
    other = PHOTO.flip(1)
    alone = [identity_from(loaded, photo, "ann")[0].tokens for photo in (PHOTO, other)]
    mean, side_by_side = (identity_from(loaded, torch.cat([PHOTO, other]), "ann", how)[0] for how in (MEAN, ALL))
    torch.testing.assert_close(mean.tokens, torch.stack(alone).mean(dim=0))
    torch.testing.assert_close(side_by_side.tokens, torch.cat(alone))


def test_of_several_faces_the_largest_counts_and_the_note_says_so(loaded):
    several, note = identity_from(reads(loaded, SMALL, LARGE), PHOTO, "ann")
    assert torch.equal(several.tokens, identity_from(loaded, PHOTO, "ann")[0].tokens)
    assert "the largest of several in 1" in note


def test_photos_without_a_face_are_left_out(loaded):
    with_one, note = identity_from(loaded, torch.cat([PHOTO, torch.zeros_like(PHOTO)]), "ann")
    assert torch.equal(with_one.tokens, identity_from(loaded, PHOTO, "ann")[0].tokens)
    assert "a face in 1 of 2 photos" in note


def test_weights_that_look_at_the_picture(loaded):
    made, _ = identity_from(reads(plus_v2(), LARGE, clip_vision=Vision(12)), PHOTO, "ann")
    assert made.tokens.shape == (TOKENS, tiny.CONTEXT_WIDTH) and not torch.equal(made.tokens, made.nobody)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda w: identity_from(w, torch.zeros_like(PHOTO), "ann"), "no face is seen"),
        (lambda w: identity_from(reads(plus_v2(), LARGE), PHOTO, "ann"), "clip_vision.*CLIP-ViT-H-14"),
        (lambda w: identity_from(reads(plus_v2(), LARGE, clip_vision=Vision(5)), PHOTO, "ann"), "width 5.*12"),
        (lambda w: identity_from(reads(as_form(w, INSTANTID), LARGE), PHOTO, "ann"), "face_models.*antelopev2"),
        (lambda w: chained(w, chained(plus_v2(), None, "test"), "test"), "encoded by plusv2.bin"),
        (lambda w: files.find("ipadapter/nothing.bin"), "models/ipadapter.*h94/IP-Adapter-FaceID.*non-commercial"),
        (lambda w: files.find("ipadapter/../../secret.bin"), "nothing|secret"),
    ],
)
def test_bad_input(loaded, spoil, said):
    with pytest.raises(LikenessError, match=f"(?s){said}"):
        spoil(loaded)


def as_form(loaded, form):
    return replace(loaded, weights=replace(loaded.weights, form=form))
