"""What DIIR is given and what may go wrong on the way: kinds of pictures, texts, memory that runs out."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from support.comfy.diir import QUICK, face, faces_of, job, pictures, repaired, same_outside
from support.comfy.magicface import chain

from likeness.core.diir import features
from likeness.core.errors import LikenessError
from likeness.hosts.comfy.diir.settings import Options

PAPER = Options(request=replace(QUICK, keep_style="paper"))


def told(outcome) -> list[str]:
    return [one["done"] for one in json.loads(outcome.report)["faces"]]


def test_a_person_s_prompt_is_known_for_what_it_is(parts, caplog):
    """MagicFace warns where the sampler's text is not the one that it was given."""
    assert told(repaired(job(parts, references=chain("man")))) == ["repaired"]
    assert not [record.message for record in caplog.records if record.levelname == "WARNING"]


def test_colours_outside_the_range_and_alpha_of_a_float_picture(parts):
    image = pictures(1, channels=4) * 1.5 - 0.2  # as HDR pictures and sharpened ones come
    outcome = repaired(job(parts, image))
    assert told(outcome) == ["repaired"] and same_outside(outcome, image)
    assert torch.equal(outcome.image[..., 3], image[..., 3])


@pytest.mark.parametrize("shape", [(0, 64, 64, 3), (1, 0, 64, 3), (64, 64, 3)])
def test_pictures_without_pixels_are_refused(parts, shape):
    with pytest.raises(LikenessError, match="image"):
        repaired(job(parts, torch.zeros(shape), faces_of(pictures(), (face(),))))


def test_a_mask_of_where_without_pictures_is_refused(parts):
    with pytest.raises(LikenessError, match="DIIR Options: where"):
        repaired(job(parts, options=Options(request=QUICK, where=torch.zeros(0, 8, 8))))


@pytest.mark.parametrize("fits", [0, 1, 5])
def test_a_feature_cache_that_runs_out_of_memory_gives_the_same_picture(parts, monkeypatch, fits):
    """Memory told to be there is not: the copy itself fails, at once or in the middle of a level."""
    plain = repaired(job(parts, options=PAPER))
    copied, count = features._copied, 0

    def full(feature, place):
        nonlocal count
        count += 1
        if count > fits:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return copied(feature, place)

    monkeypatch.setattr(features, "_copied", full)
    outcome = repaired(job(parts, options=PAPER))
    assert told(outcome) == ["repaired"]
    assert "computed again" in json.loads(outcome.report)["notes"][0]
    assert float((outcome.image - plain.image).abs().max()) < 1e-5


def test_another_error_of_the_feature_cache_is_not_hidden(parts, monkeypatch):
    def broken(feature, place):
        raise RuntimeError("an illegal address was met")

    monkeypatch.setattr(features, "_copied", broken)
    with pytest.raises(RuntimeError, match="illegal address"):
        repaired(job(parts, options=PAPER))
