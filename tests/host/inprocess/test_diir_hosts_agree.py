"""The miniature's own weights, a picture and a person through both hosts: the same repaired picture."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import comfy.sd1_clip
import pytest
import torch

from likeness.core.diir.request import DiirRequest
from likeness.faces.interface import Face, Faces
from likeness.hosts.comfy.diir.repair import Job, repair_faces
from likeness.hosts.comfy.diir.settings import Options
from likeness.hosts.comfy.magicface.references import References, given_concept
from likeness.hosts.comfy.miniature import models, sample

PROMPT = "a picture of a man, portrait"
DRAWN = {
    "identity": 8, "held_out": True, "scene": "snow", "style": "flat", "garment": "shirt", "garment_colour": "white",
    "accessory": "none", "accessory_colour": "red", "expression": "none", "layout": 3, "size": 128,
}  # fmt: skip
#: The largest difference of a pixel, of 1: float32 on two implementations of the UNet, through six steps and back.
TOLERANCE = 1e-4


def miniature_pipeline():
    """The headless miniature, with the tokenizer's files that the host has."""
    from transformers import CLIPTokenizer

    from likeness.hosts.diffusers import miniature

    files = Path(comfy.sd1_clip.__file__).parent / "sd1_tokenizer"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(miniature, "load_tokenizer", lambda: CLIPTokenizer.from_pretrained(files))
        return miniature.miniature.__wrapped__()


def drawn(**more) -> sample.Sample:
    return sample.draw(sample.SampleRequest(**{**DRAWN, **more}))


@pytest.mark.parametrize(
    ("settings", "person"),
    [({}, False), ({}, True), ({"keep_style": "paper"}, False), ({"mode": "fast", "keep_style": "latents"}, False)],
    ids=["nobody", "MagicFace", "paper", "fast"],
)
def test_hosts_agree(settings, person):
    from likeness.hosts.diffusers.diir import FaceTarget, Repair, target_of
    from likeness.hosts.diffusers.diir import repair_faces as headless

    request = replace(DiirRequest(steps=6), **settings)
    image, reference = drawn(shot="full body").image, drawn(shot="portrait", identity=20)
    ys, xs = torch.where(drawn(shot="full body").face[0] > 0.5)
    box = tuple(float(v) for v in (xs.min(), ys.min() + 4, xs.max() + 1, ys.max() + 1))
    face = Face(box, 1.0, number=1)

    model, clip, vae = models.load()
    chain = References((given_concept(reference.image, reference.person, "man", "", 2.0),)) if person else None
    job = Job(image, model, clip, vae, PROMPT, references=chain, options=Options(request=request),
              faces=Faces(((face,),), 128, 128, "by hand"))  # fmt: skip
    with torch.inference_mode():
        ours = repair_faces(job, None).image

    pipeline = miniature_pipeline()
    who = FaceTarget(PROMPT)
    if person:
        pixels = reference.image[0].movedim(-1, 0)
        who = target_of(pipeline, [pixels], "man", [reference.person[0]], PROMPT, weight=2.0)
    with torch.no_grad():
        done = headless(pipeline, [image[0].movedim(-1, 0)], [Repair(0, face, who)], request)
    theirs = done.pictures[0].movedim(0, -1)[None]

    changed = float((ours - image).abs().max())
    error = float((ours - theirs).abs().max())
    print(f"{settings} {person}: largest difference {error:.1e}; the repair changes up to {changed:.2f}")
    assert changed > 0.05
    assert error < TOLERANCE
