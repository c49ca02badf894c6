"""Paths through the nodes on a GPU: no device is mixed, the picture is the CPU's, and a step waits little.

The host manages the virtual GPU itself: a card with room for everything, and one with room for half of the weights, of
which the rest come layer by layer (as with ``--lowvram``, which the server refuses beside ``--cpu``).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import comfy.utils
import pytest
import torch
from diffusers import ControlNetModel
from support.comfy import magicface, tiny
from support.comfy.diir import job
from support.comfy.magicface import Parts, box, chain, picture
from support.comfy.magicid import halves, people
from support.comfy.persona import PLAIN, PROMPT
from support.comfy.persona import chain as personas
from support.comfy.virtual import card, for_card, sampled

from lab.virtual_gpu import DEVICE, Log
from likeness.core.diir.request import DiirRequest
from likeness.hosts.comfy.diir.repair import repair_faces
from likeness.hosts.comfy.diir.settings import Options
from likeness.hosts.comfy.magicface import previews
from likeness.hosts.comfy.magicface.references import References, given_concept
from likeness.hosts.comfy.magicid import apply as magicid
from likeness.hosts.comfy.magicid.control_weights import build
from likeness.hosts.comfy.persona import apply as comfy_persona
from likeness.hosts.comfy.text import encode

ROOM = 10**12
STEPS = 2


@dataclass
class Bench:
    """A checkpoint on a device, and how often each step of its runs waits.

    Attributes:
        parts: its models. log: the device's. pictures_on: where images are that nodes are given.
        waits: of every step but a run's first, which brings what stays the same to the device.
    """

    parts: Parts
    log: Log
    pictures_on: torch.device
    waits: list[int] = field(default_factory=list)
    first: bool = True

    def tick(self, *_: Any, **__: Any) -> None:
        """A step is over."""
        if not self.first:
            self.waits.append(self.log.syncs)
        self.first = False
        self.log.clear()

    def sample(self, model: Any, positive: list, negative: list | None = None, **more: Any) -> torch.Tensor:
        """Latents, with the steps' waits noted."""
        self.first = True
        negative = self.parts.negative if negative is None else negative
        return sampled(model, positive, negative, steps=STEPS, callback=self.tick, **more)


# -- paths -----------------------------------------------------------------------------------------------------------


def persona_with_magicface(bench: Bench) -> tuple[Any, list]:
    references = chain("face", mask=box())
    below = magicface.apply(bench.parts, references, PLAIN, alpha=0.5, record=False).model
    return comfy_persona.apply(below, bench.parts.clip, personas(), PROMPT)


def together(bench: Bench) -> torch.Tensor:
    return bench.sample(*persona_with_magicface(bench))


def second_pass(bench: Bench) -> torch.Tensor:
    """The same model again, on a larger latent from a lower noise level on."""
    model, positive = persona_with_magicface(bench)
    first = bench.sample(model, positive)
    larger = torch.nn.functional.interpolate(first.cpu(), scale_factor=1.5)
    return bench.sample(model, positive, latent=larger, denoise=0.6)


def preview(bench: Bench) -> torch.Tensor:
    there = [x.to(bench.pictures_on) for x in (picture(), box(), box())]
    references = References((given_concept(there[0], there[1], "man", "", 3.0, there[2]),))
    made = magicface.apply(bench.parts, references, alpha=0.5)
    latents = bench.sample(made.model, made.positive)
    drawn = previews.draw(made.record, latents, picture(5).to(bench.pictures_on), columns=2)
    return torch.cat([one.flatten() for one in drawn])


def identities(bench: Bench, **more: Any) -> torch.Tensor:
    text = encode(bench.parts.clip, magicface.PROMPT).conditioning
    some = people(bench.parts.model, 1.0, 1.0)
    made = magicid.apply(bench.parts.model, some, halves(), magicid.How(), text, bench.parts.negative, **more)
    return bench.sample(made.model, made.positive, made.negative)


def identities_and_control(bench: Bench) -> torch.Tensor:
    torch.manual_seed(0)
    network = ControlNetModel.from_unet(tiny.diffusers_unet(**tiny.TWO_LEVELS))
    for name, weight in network.named_parameters():
        if name.startswith("controlnet_"):
            torch.nn.init.normal_(weight, std=0.1)
    control = build(network.state_dict(), bench.parts.model, "test")
    if bench.parts.model.load_device == DEVICE:
        for_card(control.control_model_wrapped)
        control.load_device = DEVICE
    return identities(bench, control_net=control, pose=picture(2).to(bench.pictures_on))


def repair(mode: str, steps: int = STEPS, **request: Any) -> Callable[[Bench], torch.Tensor]:
    def run(bench: Bench) -> torch.Tensor:
        options = Options(DiirRequest(steps=steps, mode=mode, **request))
        one = job(bench.parts, references=chain("man"), options=options)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", bench.tick)
            return repair_faces(replace(one, image=one.image.to(bench.pictures_on)), None).image

    return run


@dataclass(frozen=True)
class Path:
    """Something that users do.

    Attributes:
        run: does it; its result. waits: how often a step may wait, a run's first one left out.
    """

    name: str
    run: Callable[[Bench], torch.Tensor]
    waits: int


PATHS = [
    Path("persona with MagicFace", together, 3),  # the noise level for either, and how large a map's regions are
    Path("second pass", second_pass, 3),
    Path("MagicFace Preview", preview, 3),  # and what is shown is brought to the CPU
    Path("MagicID", identities, 1),
    Path("MagicID's ControlNet", identities_and_control, 3),  # of which two are the host's own
    Path("DIIR, exact", repair("exact"), 3),  # the restoration's first step, too
    Path("DIIR, exact, features", repair("exact", keep_style="paper"), 3),
    Path("DIIR, fast", repair("fast", steps=4), 2),
]
LITTLE_ROOM = [path for path in PATHS if path.run in (together, identities, identities_and_control)]


def checkpoint(on_card: bool) -> Parts:
    """The tiny checkpoint, with a small UNet, its models not loaded yet."""
    model, clip, vae = tiny.model(tiny.diffusers_unet(**tiny.TWO_LEVELS)), tiny.clip(), tiny.vae()
    negative = encode(clip, "").conditioning
    if on_card:
        for patcher in (model, clip.patcher, vae.patcher):
            for_card(patcher)
        vae.device = DEVICE
    return Parts(model, clip, vae, negative)


def assert_same(made: torch.Tensor, wanted: torch.Tensor) -> None:
    """But for rounding, which random weights amplify."""
    assert (made - wanted).norm() < 1e-3 * wanted.norm()


@pytest.fixture(scope="module")
def wanted() -> Callable[[Path], torch.Tensor]:
    """What the CPU makes of a path."""
    parts, made = checkpoint(False), {}

    def run(path: Path) -> torch.Tensor:
        if path.name not in made:
            with torch.inference_mode():
                made[path.name] = path.run(Bench(parts, Log(), torch.device("cpu"))).clone()
        return made[path.name]

    return run


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.name)
def test_the_picture_is_the_cpus(wanted: Callable, path: Path) -> None:
    with card(ROOM) as log, torch.inference_mode():
        bench = Bench(checkpoint(True), log, DEVICE)
        out = path.run(bench).cpu()
    assert_same(out, wanted(path))
    assert max(bench.waits) <= path.waits


@pytest.mark.parametrize("path", LITTLE_ROOM, ids=lambda path: path.name)
def test_weights_that_come_layer_by_layer_change_nothing(wanted: Callable, path: Path) -> None:
    parts = checkpoint(True)
    with card(parts.model.model_size() // 2) as log, torch.inference_mode():
        out = path.run(Bench(parts, log, torch.device("cpu"))).cpu()
        assert parts.model.model.model_lowvram
        assert 0 < parts.model.loaded_size() < parts.model.model_size()
    assert_same(out, wanted(path))
