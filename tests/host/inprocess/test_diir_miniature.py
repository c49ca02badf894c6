"""DIIR on the miniature: blobs without eyes become the person of the reference, nothing else moves."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from support.comfy import tiny

from likeness.core.diir.request import DiirRequest
from likeness.hosts.comfy import text
from likeness.hosts.comfy.diir.models import face_models
from likeness.hosts.comfy.diir.repair import Job, repair_faces
from likeness.hosts.comfy.diir.settings import Options
from likeness.hosts.comfy.magicface.references import References, given_concept
from likeness.hosts.comfy.miniature import models, sample

PERSON = {
    "held_out": True, "shot": "portrait", "scene": "studio", "style": "flat", "garment": "shirt",
    "garment_colour": "white", "accessory": "none", "accessory_colour": "red", "expression": "none", "layout": 0,
    "size": 256,
}  # fmt: skip
PROMPT = "a picture of {person}, portrait"


@pytest.fixture(scope="module")
def miniature():
    return models.load()


@pytest.fixture(scope="module")
def drafts(miniature):
    """Two full-body pictures drawn without an identity, IMAGE ``2 128 128 3``."""
    model, clip, vae = miniature
    positive = text.encode(clip, "a picture of a man wearing a red sweater, full body, in the snow").conditioning
    negative = text.encode(clip, "").conditioning
    latents = tiny.sample(model, positive, negative, batch=2, steps=12, seed=3, scheduler="ddim_uniform")
    with torch.inference_mode():
        return vae.decode(latents).clone()


def person(identity: int) -> References:
    drawn = sample.draw(sample.SampleRequest(identity=identity, **PERSON))
    return References((given_concept(drawn.image, drawn.person, "man", drawn.caption, 1.0),))


def repaired(miniature, image: torch.Tensor, **more):
    model, clip, vae = miniature
    with torch.inference_mode():
        return repair_faces(Job(image, model, clip, vae, **{"prompt": PROMPT, **more}), face_models(model, "auto"))


def test_similarity_rises_and_nothing_else_moves(miniature, drafts):
    outcome = repaired(miniature, drafts, references=person(8))
    rows = json.loads(outcome.report)["faces"]
    print([(row["similarity_before"], row["similarity_after"]) for row in rows])
    assert [row["done"] for row in rows] == ["repaired"] * len(drafts)
    assert all(row["person"] == "man" and row["prompt"] == "a picture of a man, portrait" for row in rows)
    assert all(row["similarity_after"] > row["similarity_before"] + 0.2 for row in rows)
    outside = (outcome.mask == 0)[..., None].expand_as(drafts)
    assert torch.equal(outcome.image[outside], drafts[outside])
    assert float((outcome.mask > 0).float().mean()) < 0.15


def test_a_batch_is_its_pictures_alone(miniature, drafts):
    quick = Options(request=DiirRequest(steps=6))
    together = repaired(miniature, drafts, options=quick).image
    alone = torch.cat([repaired(miniature, drafts[i : i + 1], options=quick).image for i in range(len(drafts))])
    assert not torch.equal(together, drafts)
    assert float((together - alone).abs().max()) <= 1e-4


@pytest.mark.parametrize("more", [{"mode": "fast"}, {"keep_style": "paper"}])
def test_other_modes_find_the_person_too(miniature, drafts, more):
    request = replace(DiirRequest(steps=12), **more)
    outcome = repaired(miniature, drafts[:1], references=person(8), options=Options(request=request))
    (row,) = json.loads(outcome.report)["faces"]
    print(more, row["similarity_before"], row["similarity_after"])
    assert row["done"] == "repaired"
    assert row["similarity_after"] is not None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_finds_the_person_as_well(drafts, miniature, dtype):
    """Weights and calls in half precision: what comes out is the face of float32, as alike to the person."""
    quick = Options(request=DiirRequest(steps=10))
    full = repaired(miniature, drafts[:1], references=person(8), options=quick)
    model, clip, vae = models.load()
    model.model.diffusion_model.to(dtype)
    model.model.diffusion_model.dtype = dtype
    seen = set()
    model.set_model_attn1_patch(lambda q, k, v, extra: (seen.add(q.dtype), (q, k, v))[1])
    half = repaired((model, clip, vae), drafts[:1], references=person(8), options=quick)
    assert seen == {dtype} and half.image.dtype == torch.float32
    outside = (half.mask == 0)[..., None].expand_as(half.image)
    assert torch.equal(half.image[outside], drafts[:1][outside])
    difference = float((half.image - full.image).abs()[half.mask > 0.5].mean())
    similarities = [json.loads(one.report)["faces"][0]["similarity_after"] for one in (full, half)]
    print(dtype, difference, similarities)
    assert 0 < difference < 0.03
    assert abs(similarities[0] - similarities[1]) < 0.1


def test_large_faces_stay(miniature):
    drawn = sample.draw(sample.SampleRequest(identity=8, **PERSON))
    outcome = repaired(miniature, drawn.image, references=person(8))
    assert outcome.image is drawn.image
    assert "not small" in outcome.report or "large enough" in outcome.report
