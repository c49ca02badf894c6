"""MagicID's ControlNet in the host: Eq. 1 and Alg. 1 in its cross-attention, InstantID's, chains, bad input."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from diffusers import ControlNetModel
from support.comfy import tiny
from support.comfy.magicface import PROMPT
from support.comfy.magicid import halves, people

from likeness.core.errors import LikenessError
from likeness.core.magicid.projections import IdentityAttention
from likeness.formats.identity import INSTANTID, MAGICID
from likeness.hosts.comfy.magicid.apply import How, apply, attention_widths
from likeness.hosts.comfy.magicid.control import OPTIONS, IdentityControlNet, WithOptions
from likeness.hosts.comfy.magicid.control_weights import build
from likeness.hosts.comfy.magicid.identities import Identities
from likeness.hosts.comfy.text import encode
from likeness.hosts.comfy.unet import read_control, read_unet

POSE = torch.rand(1, 128, 128, 3, generator=torch.Generator().manual_seed(2))
EFFECT = 1e-2


def trained(seed=0):
    """A diffusers ControlNet of the tiny UNet whose zero convolutions have learnt something."""
    made = ControlNetModel.from_unet(tiny.diffusers_unet())
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in made.named_parameters():
            if name.startswith("controlnet_"):
                weight.copy_(torch.randn(weight.shape, generator=g) * 0.1)
    return made.eval()


@pytest.fixture(scope="module")
def control():
    return trained()


@pytest.fixture
def host_control(parts, control):
    return build(control.state_dict(), parts.model, "test")


def own(parts, control, *scales):
    """People of weights of our own form, which bring a ControlNet; nothing acts in the UNet."""
    some = people(parts.model, *scales)
    blocks = read_unet(parts.model, "test")
    widths = attention_widths(parts.model, blocks)
    torch.manual_seed(4)
    layers = IdentityAttention({b: w for b, w in widths.items() if b.section != "up"}, blocks.context_width)
    mine = replace(
        some.loaded.weights, form=MAGICID, layers=(), own={"control": layers.requires_grad_(False)},
        control=control.state_dict(),
    )  # fmt: skip
    return Identities(replace(some.loaded, weights=mine), some.people)


def other_family(parts, control):
    """A ControlNet that reads wider text than the model."""
    made = build(control.state_dict(), parts.model, "test")
    for block in made.control_model.modules():
        if hasattr(block, "attn2"):
            block.attn2.to_k = torch.nn.Linear(48, block.attn2.to_k.out_features, bias=False)
    return made


def instantid(parts, *scales):
    some = people(parts.model, *scales)
    loaded = replace(some.loaded, weights=replace(some.loaded.weights, form=INSTANTID))
    return Identities(loaded, some.people)


def drawn(parts, applied, **more):
    return tiny.sample(applied.model, applied.positive, applied.negative, **more)


def put(parts, some, regions=None, how=None, **more):
    text = encode(parts.clip, PROMPT).conditioning
    return apply(parts.model, some, regions, how or How(), text, parts.negative, pose=POSE, **more)


def apart(a, b):
    return float((a - b).abs().max() / b.std())


def test_the_hosts_network_is_diffusers(parts, control, host_control):
    g = torch.Generator().manual_seed(1)
    x, text = torch.randn(2, 4, 16, 16, generator=g), torch.randn(2, 77, tiny.CONTEXT_WIDTH, generator=g)
    hint, t = POSE.movedim(-1, 1).expand(2, -1, -1, -1), torch.tensor([500.0, 20.0])
    with torch.no_grad():
        down, middle = control(x, t, text, hint, return_dict=False)
        network = host_control.control_model
        plain = network(x=x, hint=hint, timesteps=t, context=text)
        ours = WithOptions(network)(x, hint, t, text, **{OPTIONS: {"patches_replace": {}}})
    for made in (plain, ours):
        for a, b in zip([*made["output"], *made["middle"]], [*down, middle], strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    assert all(torch.equal(a, b) for a, b in zip(plain["output"], ours["output"], strict=True))


def test_nobody_in_it_is_the_plain_controlnet_bit_for_bit(parts, control, host_control):
    plain = drawn(parts, put(parts, None, control_net=host_control))
    two = own(parts, control, 1.0, 1.0)
    assert torch.equal(drawn(parts, put(parts, two, torch.zeros(2, 8, 8))), plain)
    assert torch.equal(drawn(parts, put(parts, two, how=How(strength=0.0))), plain)
    assert apart(drawn(parts, put(parts, two, halves())), plain) > EFFECT
    assert apart(plain, drawn(parts, put(parts, two, how=How(control=0.0)))) > EFFECT


def test_regions_and_rows(parts, control):
    two = own(parts, control, 1.0, 1.0)
    one, other = (drawn(parts, put(parts, two, masks)) for masks in (halves(), halves().flip(0)))
    assert apart(one, other) > EFFECT
    both = drawn(parts, put(parts, two, halves()), batch=2)
    assert apart(both[:1], one) < 5e-4


def test_instantid_everywhere_is_the_hosts_way_of_giving_a_controlnet_its_tokens(parts, host_control):
    some = instantid(parts, 0.7)
    ours = put(parts, some, control_net=host_control)
    tokens, nobody = (getattr(some.people[0], name)[None] for name in ("tokens", "nobody"))
    plain = put(parts, None, control_net=host_control)

    def told(conditioning, tokens):
        return [[text, {**values, "cross_attn_controlnet": tokens}] for text, values in conditioning]

    theirs = tiny.sample(ours.model, told(plain.positive, tokens), told(plain.negative, nobody))
    assert apart(drawn(parts, ours), theirs) < 5e-4
    assert apart(drawn(parts, put(parts, some, torch.zeros(1, 4, 4), control_net=host_control)), theirs) > EFFECT


def test_it_chains_copies_and_forgets_its_run(parts, control, host_control):
    before = put(parts, None, control_net=host_control)
    chained = apply(
        parts.model, own(parts, control, 1.0), None, How(), before.positive, before.negative, pose=1 - POSE
    )
    mine = chained.positive[0][1]["control"]
    assert isinstance(mine, IdentityControlNet) and mine.previous_controlnet is before.positive[0][1]["control"]
    assert mine is chained.negative[0][1]["control"] and len(mine.get_models()) == 2
    alone = put(parts, own(parts, control, 1.0))
    assert apart(drawn(parts, chained), drawn(parts, alone)) > EFFECT
    assert mine._run is None and OPTIONS not in mine.extra_args
    clone = mine.deepclone_multigpu(torch.device("cpu"))
    assert clone.control_model.network is not mine.control_model.network and clone.placed is mine.placed


def test_a_folded_pose_picture(parts, control):
    torch.manual_seed(0)
    width = tiny.UNET["block_out_channels"][0]
    hint = torch.nn.Sequential(
        torch.nn.PixelUnshuffle(8), torch.nn.Conv2d(192, 16, 3, padding=1), torch.nn.SiLU(),
        torch.nn.Conv2d(16, width, 1),
    )  # fmt: skip
    weights = {k: v for k, v in control.state_dict().items() if not k.startswith("controlnet_cond_embedding.")}
    weights |= {f"controlnet_cond_embedding.{k}": v for k, v in hint.state_dict().items()}
    network = build(weights, parts.model, "test").control_model
    pixels = POSE.movedim(-1, 1)
    torch.testing.assert_close(network.input_hint_block(pixels, None, None), hint(pixels))
    assert len(read_control(network, "test").layout.blocks) == 7


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda p, c, h: apply(p.model, instantid(p, 1.0), control_net=h), "pose.*nothing"),
        (lambda p, c, h: apply(p.model, own(p, c, 1.0)), "acts through its ControlNet only"),
        (lambda p, c, h: put(p, instantid(p, 1.0), control_net=object()), "control_net.*another network"),
        (lambda p, c, h: put(p, None, control_net=other_family(p, c)), "control_net.*for text of 48"),
        (lambda p, c, h: build({k: v for k, v in c.state_dict().items() if "mid" not in k}, p.model, "x"), "of x"),
    ],
)
def test_bad_input(parts, control, host_control, spoil, said):
    with pytest.raises(LikenessError, match=said):
        spoil(parts, control, host_control)
