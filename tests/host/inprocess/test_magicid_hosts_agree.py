"""The same people, regions, pose and noise through both hosts give the same latents, in the UNet and the ControlNet."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace

import pytest
import torch
from diffusers import ControlNetModel
from support.comfy import tiny
from support.comfy.agree import CFG, difference, in_comfy, scheduler
from support.comfy.magicface import PROMPT
from support.comfy.magicid import halves, people

from likeness.core.magicid.projections import IdentityAttention
from likeness.core.schedule import schedule_sigmas
from likeness.formats.identity import MAGICID
from likeness.hosts.comfy.magicid.apply import How, apply, attention_widths, placed
from likeness.hosts.comfy.magicid.identities import Identities
from likeness.hosts.comfy.text import encode
from likeness.hosts.comfy.unet import read_unet
from likeness.hosts.diffusers.magicid import IdentitySession, Posed, introduced
from likeness.hosts.diffusers.sampling import Conditioning, PlainSession, guided_denoiser, sample

SIZE = (16, 24)
POSE = torch.rand(1, 8 * SIZE[0], 8 * SIZE[1], 3, generator=torch.Generator().manual_seed(2))
#: Largest difference allowed, relative to the latents' largest value: float32 on two implementations of the networks.
TOLERANCE, EFFECT = 1e-4, 1e-2


@pytest.fixture(scope="module")
def unet():
    return tiny.diffusers_unet()


@pytest.fixture(scope="module")
def control(unet):
    """A ControlNet whose zero convolutions have learnt something."""
    made, g = ControlNetModel.from_unet(unet), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in made.named_parameters():
            if name.startswith("controlnet_"):
                weight.copy_(torch.randn(weight.shape, generator=g) * 0.1)
    return made.eval()


def three(model, control):
    """Two people and one who acts from the middle of the run, by weights that act in both networks."""
    some = people(model, 1.0, 0.7, 1.0)
    blocks = read_unet(model, "test")
    widths = attention_widths(model, blocks)
    torch.manual_seed(4)
    own = {
        "unet": IdentityAttention(widths, blocks.context_width),
        "control": IdentityAttention({b: w for b, w in widths.items() if b.section != "up"}, blocks.context_width),
    }
    own = {place: layers.requires_grad_(False) for place, layers in own.items()}
    weights = replace(some.loaded.weights, form=MAGICID, layers=(), own=own, control=control.state_dict())
    late = replace(some.people[2], start=0.5)
    return Identities(replace(some.loaded, weights=weights), (*some.people[:2], late))


@torch.no_grad()
def in_diffusers(unet, control, some, regions, texts, made, noise):
    sigmas = schedule_sigmas(made.alphas_cumprod, made.timesteps)
    who, own, model = placed(some.people, regions), some.loaded.weights.own, unet
    networks = {"unet": unet}
    if control is not None:
        networks["control"], model = control, Posed(unet, control, POSE[0].movedim(-1, 0), 1.0)
    with ExitStack() as stack:
        places = [stack.enter_context(introduced(n, own[place], who, sigmas)) for place, n in networks.items()]
        session = IdentitySession(PlainSession(), places, made.alphas_cumprod)
        return sample(guided_denoiser(model, *map(Conditioning, texts), CFG, session), noise, made)


@pytest.mark.parametrize("posed", [False, True], ids=["UNet", "UNet and ControlNet"])
@pytest.mark.parametrize("placed_people", [True, False], ids=["regions", "everywhere"])
def test_hosts_agree(parts, unet, control, posed, placed_people):
    made, noise = scheduler(), tiny.noise(SIZE, batch=2)
    model, text = tiny.model(unet), encode(parts.clip, PROMPT).conditioning
    some = three(model, control)
    regions = torch.cat([halves(), torch.ones(1, 16, 16)]) if placed_people else None
    pose, how = POSE if posed else None, How(control=1.0)
    ours = in_comfy(apply(model, some, regions, how, text, parts.negative, pose=pose), made, noise)
    texts = (text[0][0], parts.negative[0][0])
    theirs = in_diffusers(unet, control if posed else None, some, regions, texts, made, noise)
    plain = in_comfy(apply(model, None, None, How(), text, parts.negative), made, noise)
    assert difference(ours, theirs) < TOLERANCE
    assert float((ours - plain).abs().max() / theirs.abs().max()) > EFFECT
