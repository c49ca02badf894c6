"""DIIR in ComfyUI on a tiny checkpoint: what is repaired, what is left alone, and what is told."""

from __future__ import annotations

import json
from dataclasses import replace

import comfy.model_sampling
import pytest
import torch
from support.comfy import tiny
from support.comfy.diir import QUICK, face, faces_of, job, pictures, repaired, same_outside
from support.comfy.magicface import chain

from likeness.core.errors import LikenessError
from likeness.hosts.comfy.diir.choose import who_is_who
from likeness.hosts.comfy.diir.people import prompt_for, with_article
from likeness.hosts.comfy.diir.settings import Options


def told(outcome) -> list[str]:
    return [one["done"] for one in json.loads(outcome.report)["faces"]]


# -- what changes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "place"),
    [
        ((120, 136, 3), face()),
        ((120, 136, 4), face()),
        ((121, 77, 3), face(70, 60)),
        ((120, 136, 3), face(2, 3)),
        ((120, 136, 3), face(60, 50, 24, landmarks=torch.tensor([[55.0, 45], [63, 51], [58, 53], [53, 56], [59, 60]]))),
        ((64, 64, 3), face(32, 32, 60)),
        ((120, 136, 1), face()),
        ((120, 136, 3), face(60, 50, 8)),
        ((900, 900, 3), face(450, 450, 1000)),
    ],
    ids=["plain", "alpha", "odd sizes", "border", "tilted", "fills the picture", "grey", "8 px", "1000 px"],
)
def test_only_the_masked_head_changes(parts, shape, place):
    image = pictures(1, *shape)
    outcome = repaired(job(parts, image, faces_of(image, (place,)), max_face_px=0))
    assert told(outcome) == ["repaired"]
    assert outcome.image.shape == image.shape
    assert same_outside(outcome, image)
    assert 0 < float((outcome.mask > 0).float().mean()) < 1
    assert not torch.equal(outcome.image, image)
    if shape[-1] == 4:
        assert torch.equal(outcome.image[..., 3], image[..., 3])


def test_eight_overlapping_faces(parts):
    image = pictures()
    found = tuple(face(30 + 9 * i, 40 + 5 * (i % 3), 26, i + 1) for i in range(8))
    outcome = repaired(job(parts, image, faces_of(image, found), options=Options(request=QUICK, faces_at_once=3)))
    assert told(outcome) == ["repaired"] * 8
    assert same_outside(outcome, image) and len(outcome.crops) == 8


def test_v_prediction_is_inverted_too(parts):
    class Velocity(comfy.model_sampling.ModelSamplingDiscrete, comfy.model_sampling.V_PREDICTION):
        pass

    model = parts.model.clone()
    model.add_object_patch("model_sampling", Velocity(model.model.model_config))
    outcome = repaired(job(parts, model=model))
    assert told(outcome) == ["repaired"]
    assert not torch.equal(outcome.image, repaired(job(parts)).image)


def test_nothing_to_do_gives_the_same_tensor(parts):
    image = pictures(2)
    for outcome in (
        repaired(job(parts, image, faces_of(image, (), ()))),
        repaired(job(parts, image, strength=0.0)),
        repaired(job(parts, image, which="none")),
        repaired(job(parts, image, max_face_px=10)),
    ):
        assert outcome.image is image
        assert not outcome.mask.any()
        assert outcome.crops.ndim == 4


@pytest.mark.parametrize("mode", ["exact", "fast"])
@pytest.mark.parametrize("style", ["off", "latents", "paper"])
def test_every_mode_repairs(parts, mode, style):
    if (mode, style) == ("fast", "paper"):
        pytest.skip("refused by the request")
    image = pictures()
    outcome = repaired(job(parts, image, options=Options(request=replace(QUICK, mode=mode, keep_style=style))))
    assert told(outcome) == ["repaired"]
    assert same_outside(outcome, image)


def test_feature_caches_agree(parts):
    results = [
        repaired(job(parts, options=Options(request=replace(QUICK, keep_style="paper", cache=cache)))).image
        for cache in ("device", "host", "recompute")
    ]
    assert torch.equal(results[0], results[1])
    assert float((results[0] - results[2]).abs().max()) < 1e-5


def test_features_without_room_are_computed_again_and_the_report_says_so(parts, monkeypatch):
    from likeness.hosts.comfy.diir import sampling

    paper = Options(request=replace(QUICK, keep_style="paper"))
    plain = repaired(job(parts, options=paper))
    monkeypatch.setattr(sampling, "feature_room", lambda model, shape: {"device": 0, "host": 0})
    outcome = repaired(job(parts, options=paper))
    assert not json.loads(plain.report)["notes"]
    assert json.loads(outcome.report)["notes"] == [
        f"features of {QUICK.steps} steps found no room and were computed again"
    ]
    assert float((outcome.image - plain.image).abs().max()) < 1e-5


def test_batches_with_several_faces_and_none(parts):
    image = pictures(3)
    outcome = repaired(job(parts, image, faces_of(image, (face(), face(100, 80, 20, 2)), (), (face(40, 60),))))
    assert told(outcome) == ["repaired"] * 3
    assert torch.equal(outcome.image[1], image[1])
    assert same_outside(outcome, image)
    assert len(outcome.crops) == 3


def test_two_runs_in_a_row_agree_and_leave_nothing(parts):
    options = {**parts.model.model_options["transformer_options"]}
    first, second = (repaired(job(parts, references=chain("man"))).image for _ in range(2))
    assert torch.equal(first, second)
    assert parts.model.model_options["transformer_options"] == options
    assert not parts.model.wrappers


def test_one_bad_picture_does_not_lose_the_batch(parts):
    image = pictures(2)
    image[0, 0, 0, 0] = float("nan")
    outcome = repaired(job(parts, image))
    assert told(outcome) == ["the picture holds NaN or infinite values", "repaired"]
    assert torch.equal(outcome.image[0].nan_to_num(7), image[0].nan_to_num(7))


def test_out_of_memory_goes_on_with_fewer_faces(parts, monkeypatch):
    from likeness.hosts.comfy.diir import crops

    calls = []

    def run(model, chunk, *_):
        calls.append(len(chunk.latents))
        if len(chunk.latents) > 1:
            raise torch.OutOfMemoryError("too much")
        return chunk.latents * 0.9

    monkeypatch.setattr(crops, "run", run)
    image = pictures(3)
    assert told(repaired(job(parts, image))) == ["repaired"] * 3
    assert calls == [3, 1, 2, 1, 1]


# -- which faces -------------------------------------------------------------------------------------------------------


def test_gates_say_why(parts):
    image = pictures(1, 200, 300)
    found = (face(40, 50, 20, 1), face(150, 100, 130, 2), face(270, 40, 6, 3))
    faces = faces_of(image, found)

    def reasons(**more):
        return told(repaired(job(parts, image, faces, **more)))

    first, second, third = reasons()
    assert first == "repaired" and "130 px" in second and "6 px" in third
    assert reasons(which="2")[1] == "repaired" and reasons(which="2")[0] == "not chosen"
    assert reasons(which="largest")[1] == "repaired"
    assert reasons(which="all")[:2] == ["repaired"] * 2
    assert reasons(which="1:3, 2:1") == ["not chosen", "not chosen", "repaired"]
    where = torch.zeros(1, 20, 30)
    where[..., 20:] = 1
    assert reasons(options=Options(request=QUICK, where=where))[0] == "outside the mask"


@pytest.mark.parametrize("text", ["x", "0", "3-1", "1:0", "1.5"])
def test_which_refuses(parts, text):
    with pytest.raises(LikenessError, match="which"):
        repaired(job(parts, which=text))


def test_likeness_is_asked_of_all_faces_order_only_of_those_repaired():
    found = [face(20), face(60, number=2), face(100, number=3)]
    unsure = torch.full((3, 1), 0.1)
    sure = torch.tensor([[0.1], [0.2], [0.9]])
    passed = [False, True, True]
    assert [one.person for one in who_is_who(found, passed, 1, unsure, 0.5, [None], "")] == [None, 0, None]
    assert [one.person for one in who_is_who(found, [True, True, False], 1, sure, 0.5, [None], "")] == [None, None, 0]


@pytest.mark.parametrize(
    ("people", "named", "similarity", "expected"),
    [
        (2, [False, True, True], None, [None, 0, 1]),
        (2, [False, True, False], None, [0, 1, None]),
        (1, [False, True, False], None, [None, 0, None]),
        (1, [False, True, False], [[0.9], [0.1], [0.1]], [0, 0, None]),
        (2, [True, True, True], [[0.9, 0.0], [0.0, 0.9], [0.1, 0.2]], [0, 1, 1]),
    ],
    ids=["both named", "one of two", "the only person", "though another face is more alike", "more faces than people"],
)
def test_a_named_face_gets_somebody(people, named, similarity, expected):
    found = [face(20), face(60, number=2), face(100, number=3)]
    table = None if similarity is None else torch.tensor(similarity)
    who = who_is_who(found, named, people, table, 0.5, [None] * people, "", by_name=True)
    assert [one.person for one in who] == expected


def test_prompts():
    assert with_article("old man") == "an old man" and with_article("my friend") == "my friend"
    assert prompt_for("", None, 0) == "a photo of a person, portrait"
    assert prompt_for("a\nb {word}", None, 5) == "b a person"


# -- what is refused ---------------------------------------------------------------------------------------------------


def test_flow_models_are_refused(parts):
    class Flow(comfy.model_sampling.ModelSamplingDiscreteFlow, comfy.model_sampling.CONST):
        pass

    model = parts.model.clone()
    model.add_object_patch("model_sampling", Flow(model.model.model_config))
    with pytest.raises(LikenessError, match="flow"):
        repaired(job(parts, model=model))


def test_inpainting_models_are_refused(parts):
    unet = tiny.diffusers_unet(in_channels=9)
    with pytest.raises(LikenessError, match="9 input channels"):
        repaired(job(parts, model=tiny.model(unet)))


def test_faces_of_another_picture_are_refused(parts):
    image = pictures()
    with pytest.raises(LikenessError, match="faces"):
        repaired(job(parts, image, faces_of(pictures(1, 64, 64), ())))
