"""The same weights, noise and references through both hosts give the same latents: the method is written once."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from support.comfy import tiny
from support.comfy.agree import CFG, difference, in_comfy, scheduler
from support.comfy.magicface import PROMPT, apply, box, chain

from likeness.core.magicface.cache import ReferenceCache
from likeness.hosts.comfy.magicface.apply import ApplyOptions, build_request
from likeness.hosts.comfy.magicface.references import HostContext

#: Largest difference allowed, relative to the latents' largest value: float32 on two implementations of the UNet.
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def unet():
    return tiny.diffusers_unet()


def in_diffusers(unet, request, positive: list, negative: list, noise: torch.Tensor) -> torch.Tensor:
    from likeness.hosts.diffusers.magicface import sample_magicface
    from likeness.hosts.diffusers.sampling import Conditioning

    def translated(reference):
        context: HostContext = reference.context
        return dataclasses.replace(reference, context=Conditioning(context.context))

    request = dataclasses.replace(
        request, references=tuple(map(translated, request.references)), cache=ReferenceCache(0, 0)
    )
    conditions = (Conditioning(positive[0][0]), Conditioning(negative[0][0]))
    with torch.no_grad():
        return sample_magicface(unet, request, scheduler(), noise, *conditions, scale=CFG)


@pytest.mark.parametrize(
    ("names", "regions", "settings"),
    [
        ((), (), {}),
        (("man",), (), {"alpha": 1.0}),
        (("man",), (), {"alpha": 0.0, "weighting": "multiplicative"}),
        (("man", "red tie"), (), {"alpha": 0.5}),
        (("man", "red tie"), (), {"alpha": 0.25, "s_cfg": True, "map_completion": "code", "map_full_resolution": True}),
        (("man", "red tie"), (box(),), {"alpha": 0.0}),
        (("man", "red tie"), (box(), 1 - box()), {"alpha": 0.25, "s_cfg": True}),
    ],
    ids=["vanilla", "rsa", "rba multiplicative", "two concepts", "regional guidance", "one placed", "both placed"],
)
def test_hosts_agree(parts, unet, names, regions, settings, record_property):
    noise = tiny.noise((16, 18), batch=2)
    references = chain(*names, mask=box(), regions=regions)
    model = tiny.model(unet)
    applied = apply(parts, references, model=model, **settings)
    ours = in_comfy(applied, scheduler(), noise)
    options = ApplyOptions(**{name: value for name, value in settings.items() if name != "alpha"})
    alpha = settings.get("alpha", 0.4)
    request = build_request(model, parts.clip, parts.vae, PROMPT, alpha, references, options)
    theirs = in_diffusers(unet, request, applied.positive, applied.negative, noise)
    error = difference(ours, theirs)
    record_property("largest_relative_difference", error)
    print(f"{names}: largest difference {error:.1e} of the largest value")
    assert error < TOLERANCE
