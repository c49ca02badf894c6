"""DIIR beside the rest of ComfyUI: other patches, incoming conditioning, ControlNet, interrupts, memory."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import ClassVar

import comfy.controlnet
import comfy.model_management as management
import pytest
import torch
from comfy.patcher_extension import WrappersMP
from support.comfy import tiny
from support.comfy.diir import QUICK, face, faces_of, job, pictures, repaired, same_outside
from support.comfy.magicface import chain, picture
from support.comfy.persona import chain as personas

from likeness.core.errors import LikenessError
from likeness.hosts.comfy.diir import crops, settings
from likeness.hosts.comfy.diir.conditioning import recut
from likeness.hosts.comfy.diir.settings import Options
from likeness.hosts.comfy.text import encode


def notes(outcome) -> list[str]:
    return json.loads(outcome.report)["notes"]


# -- identity and other patches ----------------------------------------------------------------------------------------


def test_each_identity_source_changes_the_face(parts):
    image = pictures()
    plain = repaired(job(parts, image)).image
    for more in (
        {"references": chain("man")},
        {"personas": personas(), "prompt": "a photo of {person}"},
        {"references": chain("man"), "personas": personas(), "prompt": "a photo of {person}"},
        {"positive": encode(parts.clip, "another text").conditioning},
        {"negative": encode(parts.clip, "another text").conditioning},
    ):
        outcome = repaired(job(parts, image, **more))
        assert not torch.equal(outcome.image, plain), more
        assert same_outside(outcome, image)


def test_each_face_has_its_own_person(parts):
    image = pictures(1, 120, 240)
    faces = faces_of(image, (face(50, 60), face(180, 60, number=2)))
    outcome = repaired(job(parts, image, faces, references=chain("man", "woman")))
    rows = json.loads(outcome.report)["faces"]
    assert [row["person"] for row in rows] == ["man", "woman"]
    assert [row["prompt"] for row in rows] == ["a photo of a man, portrait", "a photo of a woman, portrait"]
    swapped = repaired(job(parts, image, faces, references=chain("man", "woman"), options=Options(QUICK, people="2,1")))
    assert [row["person"] for row in json.loads(swapped.report)["faces"]] == ["woman", "man"]
    left = repaired(job(parts, image, faces, references=chain("man"), options=Options(QUICK))).report
    assert "none of the people" in left
    alone = repaired(job(parts, image, faces_of(image, (face(50, 60),)), references=chain("man"))).image
    half = outcome.image[:, :, :120]
    assert float((half - alone[:, :, :120]).abs().max()) < 1e-4  # the neighbour's reference is not seen


def test_patches_of_others_survive_and_act_in_the_crop(parts):
    seen = {"attn": 0, "wrapper": 0, "post_cfg": 0, "rows": set()}
    model = parts.model.clone()

    def output(n, extra):
        seen["attn"] += 1
        seen["rows"].add(tuple(extra["cond_or_uncond"]))
        return n * 0.9

    def wrapper(executor, *args, **kwargs):
        seen["wrapper"] += 1
        return executor(*args, **kwargs)

    def post_cfg(args):
        seen["post_cfg"] += 1
        return args["denoised"]

    model.set_model_patch(output, "attn1_output_patch")
    model.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "theirs", wrapper)
    model.set_model_sampler_post_cfg_function(post_cfg)
    plain = repaired(job(parts)).image
    outcome = repaired(job(parts, model=model, references=chain("man")))
    assert not torch.equal(outcome.image, plain)
    assert seen["wrapper"] >= 2 * QUICK.steps and seen["attn"] >= 16 * 2 * QUICK.steps
    assert seen["post_cfg"] == QUICK.steps  # guidance is shaped while drawing only
    assert (1,) in seen["rows"]  # the inversion's rows are no positive ones
    assert model.model_options["transformer_options"]["patches"] == {"attn1_output_patch": [output]}
    assert list(model.wrappers[WrappersMP.APPLY_MODEL]) == ["theirs"]


def test_the_features_of_the_paper_mode_come_after_other_patches(parts):
    model = parts.model.clone()
    model.set_model_patch(lambda n, extra: n * 0.5, "attn1_output_patch")
    paper = Options(request=replace(QUICK, keep_style="paper"))
    assert not torch.equal(
        repaired(job(parts, model=model, options=paper)).image, repaired(job(parts, options=paper)).image
    )


# -- conditioning of the whole picture ---------------------------------------------------------------------------------


def cut_of(crop: tuple[slice, slice]):
    """A stand-in for the crops: a window of the planes."""
    return lambda planes: planes[..., crop[0], crop[1]]


@pytest.mark.parametrize(
    "values",
    [
        {"area": (2, 17, 0, 0), "strength": 0.7},
        {"area": ("percentage", 0.5, 1.0, 0.0, 0.0)},
        {"mask": torch.cat([torch.ones(1, 60, 136), torch.zeros(1, 60, 136)], dim=1), "mask_strength": 0.5},
    ],
    ids=["area", "percentage", "mask"],
)
def test_places_are_cut_to_the_crop(values):
    given = [[torch.zeros(1, 77, 4), {**values, "pooled_output": torch.ones(1, 4)}]]
    ((text, inside),), told = recut(given, cut_of((slice(0, 14), slice(0, 40))), (120, 136))
    assert text is given[0][0] and "area" not in inside and "pooled_output" in inside
    assert inside["mask"].shape == (1, 14, 40) and float(inside["mask"].min()) == 1
    assert told == ["areas and masks were cut to the faces"]
    assert given[0][1] == {**values, "pooled_output": given[0][1]["pooled_output"]}


def test_places_that_meet_no_face_are_left_out():
    here, there = {"area": (2, 17, 0, 0)}, {"area": (2, 17, 10, 0)}
    both = [[torch.zeros(1, 77, 4), here], [torch.ones(1, 77, 4), there]]
    cut = cut_of((slice(0, 14), slice(0, 40)))
    kept, told = recut(both, cut, (120, 136))
    assert len(kept) == 1 and kept[0][0] is both[0][0] and len(told) == 2
    kept, told = recut(both[1:], cut, (120, 136))
    assert len(kept) == 1 and "mask" not in kept[0][1] and "counts everywhere" in told[0]


def test_gligen_is_left_out():
    kept, told = recut([[torch.zeros(1, 77, 4), {"gligen": ("position", None, [])}]], lambda x: x, (64, 64))
    assert "gligen" not in kept[0][1] and "gligen" in told[0]


class Control(comfy.controlnet.ControlBase):
    """A ControlNet that notes the picture it is given and pushes the middle block by its brightness."""

    seen: ClassVar[list[torch.Tensor]] = []

    def copy(self):
        made = Control()
        self.copy_to(made)
        return made

    def get_control(self, x_noisy, t, cond, batched_number, transformer_options=None):
        Control.seen.append(self.cond_hint_original)
        more = self.cond_hint_original.mean() * torch.ones(x_noisy.shape[0], 64, 2, 2)
        return {"middle": [more * 5], "output": [], "input": []}

    def get_models(self):
        return []


def test_control_is_cut_and_acts(parts):
    Control.seen.clear()
    image = pictures()
    hint = picture(7, 60, 68).movedim(-1, 1)  # half the picture's size
    control = Control().set_cond_hint(hint)
    text = encode(parts.clip, "a photo of a man").conditioning
    plain = repaired(job(parts, image, positive=text)).image
    given = [[text[0][0], {**text[0][1], "control": control, "control_apply_to_uncond": True}]]
    outcome = repaired(job(parts, image, positive=given))
    assert notes(outcome) == ["control pictures were cut to the faces"]
    assert not torch.equal(outcome.image, plain) and same_outside(outcome, image)
    assert {tuple(seen.shape) for seen in Control.seen} == {(1, 3, 128, 128)}
    assert len(Control.seen) == QUICK.steps  # the inversion goes without
    assert control.cond_hint_original is hint


FIVE = torch.tensor([[55.0, 45], [65, 45], [60, 51], [56, 56], [64, 56]])


def test_landmarks_are_drawn_anew_for_the_crop(parts):
    Control.seen.clear()
    image = pictures(2)
    faces = faces_of(image, (face(landmarks=FIVE),), (face(landmarks=FIVE + 3), face(100, 80, 20, 2)))
    plain = repaired(job(parts, image, faces)).image
    options = Options(request=QUICK, control=settings.Control(Control(), "InstantID"))
    outcome = repaired(job(parts, image, faces, options=options))
    assert not torch.equal(outcome.image, plain) and same_outside(outcome, image)
    assert {tuple(seen.shape) for seen in Control.seen} == {(3, 3, 128, 128)}
    first, second, third = Control.seen[0]
    assert first.any() and second.any() and not third.any()
    rows, columns = torch.where((first[0] > 0.9) & (first[1:].amax(0) < 0.1))  # red: the viewer's left eye
    assert abs(float(columns.float().mean()) - 128 * (0.5 - 5 / 43)) < 3
    assert abs(float(rows.float().mean()) - 128 * (0.46 - 5 / 43)) < 3
    assert notes(outcome) == ["some faces have no landmarks: control_net does not act there"]


def test_a_control_net_of_another_family_is_refused(parts):
    control = Control()
    control.control_model = torch.nn.ModuleDict({"attn2": torch.nn.ModuleDict({"to_k": torch.nn.Linear(999, 8)})})
    with pytest.raises(LikenessError, match="999"):
        repaired(job(parts, options=Options(request=QUICK, control=settings.Control(control))))


def test_faces_from_elsewhere_need_no_face_models(parts, monkeypatch):
    from likeness.core.errors import bad_input
    from likeness.hosts.comfy.diir import models

    def none(choice, pack=""):
        raise bad_input("Face models", "none", "some", "Install some.")

    monkeypatch.setattr(models.faces, "load", none)
    plain = parts.model
    monkeypatch.setattr(models, "MiniatureLatent", int)
    assert models.face_models(plain, "auto", needed=False) is None
    with pytest.raises(LikenessError, match="Install"):
        models.face_models(plain, "auto")
    with pytest.raises(LikenessError, match="Install"):
        models.face_models(plain, "insightface", needed=False)


def test_a_clip_of_another_family_is_refused(parts, monkeypatch):
    monkeypatch.setattr(tiny, "TEXT", {**tiny.TEXT, "hidden_size": 64})
    with pytest.raises(LikenessError, match="clip"):
        repaired(replace(job(parts), clip=tiny.clip()))


@pytest.mark.parametrize("style", ["off", "paper"])
def test_areas_and_masks_in_a_run(parts, style):
    image = pictures(2)
    words = [encode(parts.clip, text).conditioning[0] for text in ("a man", "a woman")]
    mask = torch.zeros(1, 120, 136)
    mask[..., :60] = 1
    given = [[words[0][0], {**words[0][1], "mask": mask}], [words[1][0], {**words[1][1], "area": (15, 9, 0, 8)}]]
    options = Options(request=replace(QUICK, keep_style=style))
    outcome = repaired(job(parts, image, positive=given, references=chain("man"), options=options))
    assert same_outside(outcome, image) and not torch.equal(outcome.image, image)
    assert "areas and masks were cut to the faces" in notes(outcome)


# -- interrupts --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("calls", [1, QUICK.steps + 1, 2 * QUICK.steps + 1], ids=["inversion", "restoration", "paste"])
def test_an_interrupt_leaves_nothing_behind(parts, calls, monkeypatch):
    expected = repaired(job(parts, references=chain("man"))).image
    count = 0
    model = parts.model.clone()

    def wrapper(executor, *args, **kwargs):
        nonlocal count
        count += 1
        if count == calls:
            management.interrupt_current_processing()
        return executor(*args, **kwargs)

    model.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "theirs", wrapper)
    if calls > 2 * QUICK.steps:
        decode = crops.HostModel.decode

        def interrupted(self, latents):
            management.interrupt_current_processing()
            return decode(self, latents)

        monkeypatch.setattr(crops.HostModel, "decode", interrupted)
    try:
        with pytest.raises(management.InterruptProcessingException):
            repaired(job(parts, model=model, references=chain("man")))
    finally:
        management.interrupt_current_processing(False)
    monkeypatch.undo()
    assert "likeness_magicface" not in model.model_options["transformer_options"]
    assert list(model.wrappers) == [WrappersMP.APPLY_MODEL]
    assert torch.equal(repaired(job(parts, references=chain("man"))).image, expected)


def test_progress_is_told(parts, monkeypatch):
    import comfy.utils

    told = []
    monkeypatch.setattr(
        comfy.utils, "PROGRESS_BAR_HOOK", lambda value, total, preview, node_id=None: told.append((value, total))
    )
    repaired(job(parts, pictures(2)))
    assert told[-1] == (2 * 2 * QUICK.steps, 2 * 2 * QUICK.steps)

