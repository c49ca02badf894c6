"""Who calls the model and how: each row of the table calls it as a pack or a node of the host does.

Three things hold for every caller: without strength the picture is vanilla bit for bit; the effect is what it is
without the caller, or off with one line in the log; and the model without our patch is vanilla afterwards. A system is
a :class:`Treatment` (a few lines), a caller a :class:`Caller`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import comfy.context_windows
import comfy.samplers
import pytest
import torch
from support.comfy import tiny
from support.comfy.magicface import PROMPT, apply, box, chain
from support.comfy.magicid import halves, people
from support.comfy.persona import chain as personas

from likeness.hosts.comfy.magicid import apply as magicid
from likeness.hosts.comfy.persona import apply as comfy_persona

CLOSE = {"rtol": 1e-3, "atol": 1e-3}
#: Two levels at which every treatment acts; what a row is depends on neither their number nor the UNet's depth.
SAMPLING = {"size": (16, 16), "steps": 2, "scheduler": "simple"}


@pytest.fixture(scope="module")
def parts(parts: Any) -> Any:
    """A shallow UNet in float64: callers lay the same rows in other batches, which must not matter."""
    return replace(parts, model=tiny.in_float64(tiny.model(tiny.diffusers_unet(layers_per_block=1))))


# -- systems: what is put on a model ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Treatment:
    """A system in use: ``patch(parts, strength)`` gives the model and the positive conditioning."""

    name: str
    patch: Callable[[Any, float], tuple[Any, list]]


def magicface(**options: Any) -> Callable[[Any, float], tuple[Any, list]]:
    def patch(parts: Any, strength: float) -> tuple[Any, list]:
        made = apply(parts, chain("man", mask=box(), weight=3.0 * strength), **options)
        return made.model, made.positive

    return patch


def identities(parts: Any, strength: float) -> tuple[Any, list]:
    how = magicid.How(strength)
    return magicid.apply(parts.model, people(parts.model, 1.0, 1.0), halves(), how).model, plain_prompt(parts)


def persona(parts: Any, strength: float) -> tuple[Any, list]:
    model, positive = comfy_persona.apply(parts.model, parts.clip, personas("man"), PROMPT.replace("man", "S*"))
    return model, positive if strength else plain_prompt(parts)


TREATMENTS = [
    Treatment("magicid", identities),
    Treatment("rsa", magicface(alpha=1.0)),
    Treatment("rba", magicface(alpha=0.0)),
    Treatment("persona", persona),
]


# -- callers ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Caller:
    """Somebody between the sampler and the model.

    Attributes:
        wrap: the model as that pack or node hands it on. positive: likewise of the conditioning.
        like: of a caller that samples something else than the plain run: the one whose effect it must have.
        sampling: arguments of the sampler.
    """

    name: str
    wrap: Callable[[Any], Any] = lambda model: model
    positive: Callable[[list], list] = lambda positive: positive
    like: str | None = None
    sampling: dict[str, Any] = field(default_factory=dict)


def wrapped(call: Callable[[Callable, dict], torch.Tensor]) -> Callable[[Any], Any]:
    """The model with ``call(apply_model, args)`` in the host's slot for function wrappers."""

    def wrap(model: Any) -> Any:
        patched = model.clone()
        patched.set_model_unet_function_wrapper(call)
        return patched

    return wrap


def repeated(value: Any, rows: int) -> Any:
    """What packs do to the other arguments of a call whose rows they multiply."""
    if not isinstance(value, torch.Tensor) or value.shape[0] == rows:
        return value
    return value.repeat(-(-rows // value.shape[0]), *[1] * (value.ndim - 1))[:rows]


def tiled(tiles_a_call: int) -> Callable[[Any], Any]:
    """Crops of the whole picture, tile by tile in the rows, a certain number a call; averaged where they meet."""

    def call(apply_model: Callable, args: dict) -> torch.Tensor:
        x, t, c = args["input"], args["timestep"], args["c"]
        boxes = [(y, z) for y in (0, 8) for z in (0, 8)]
        out = torch.zeros_like(x)
        for start in range(0, len(boxes), tiles_a_call):
            some = boxes[start : start + tiles_a_call]
            rows = torch.cat([x[..., y : y + 8, z : z + 8] for y, z in some])
            made = apply_model(rows, repeated(t, len(rows)), **{k: repeated(v, len(rows)) for k, v in c.items()})
            for (y, z), part in zip(some, made.chunk(len(some)), strict=True):
                out[..., y : y + 8, z : z + 8] = part
        return out

    return wrapped(call)


def row_by_row(apply_model: Callable, args: dict) -> torch.Tensor:
    """One chunk a call, as packs short of memory do; they tell the chunk in the options."""
    x, t, c = args["input"], args["timestep"], args["c"]
    chunks = args["cond_or_uncond"]
    size = x.shape[0] // len(chunks)
    out = []
    for n, chunk in enumerate(chunks):
        rows = slice(n * size, (n + 1) * size)
        options = {**c["transformer_options"], "cond_or_uncond": [chunk]}
        options["uuids"] = [c["transformer_options"]["uuids"][n]]
        some = {k: v[rows] if isinstance(v, torch.Tensor) else v for k, v in c.items()}
        out.append(apply_model(x[rows], t[rows], **{**some, "transformer_options": options}))
    return torch.cat(out)


def twice(apply_model: Callable, args: dict) -> torch.Tensor:
    """Every row twice in a call, all of them behind all of them."""
    rows = 2 * args["input"].shape[0]
    c = {k: repeated(v, rows) for k, v in args["c"].items()}
    made = apply_model(repeated(args["input"], rows), repeated(args["timestep"], rows), **c)
    return made[: rows // 2]


def other_order(apply_model: Callable, args: dict) -> torch.Tensor:
    """The chunks of a call the other way round, told in the options."""
    x, t, c = args["input"], args["timestep"], args["c"]
    chunks = len(args["cond_or_uncond"])

    def turned(rows: Any) -> Any:
        many = isinstance(rows, torch.Tensor) and rows.shape[0] == x.shape[0]
        return torch.cat(rows.chunk(chunks)[::-1]) if many else rows

    told = {name: c["transformer_options"][name][::-1] for name in ("cond_or_uncond", "uuids")}
    turned_c = {k: turned(v) for k, v in c.items()} | {"transformer_options": {**c["transformer_options"], **told}}
    return turned(apply_model(turned(x), turned(t), **turned_c))


def windows(model: Any) -> Any:
    """The host's context windows over the batch: two pictures at a time."""
    from comfy.context_windows import (
        ContextFuseMethods,
        ContextSchedules,
        IndexListContextHandler,
        get_matching_context_schedule,
        get_matching_fuse_method,
    )

    patched = model.clone()
    patched.model_options["context_handler"] = IndexListContextHandler(
        context_schedule=get_matching_context_schedule(ContextSchedules.STATIC_STANDARD),
        fuse_method=get_matching_fuse_method(ContextFuseMethods.FLAT),
        context_length=2,
        context_overlap=0,
        context_stride=1,
        closed_loop=False,
        dim=0,
    )
    return patched


def perturbed(model: Any) -> Any:
    """A further pass of the positive conditioning at each noise level, of which nothing is used."""
    patched = model.clone()

    def extra(args: dict) -> torch.Tensor:
        options = comfy.model_patcher.set_model_options_patch_replace(
            args["model_options"].copy(), lambda q, k, v, extra, mask=None: v, "attn1", "middle", 0
        )
        comfy.samplers.calc_cond_batch(args["model"], [args["cond"]], args["input"], args["sigma"], options)
        return args["denoised"]

    patched.set_model_sampler_post_cfg_function(extra)
    return patched


def quarters(positive: list) -> list:
    """Area conditioning: the left and the right half, each with the prompt."""
    ((text, extra),) = positive
    return [[text, {**extra, "area": (16, 8, 0, 0)}], [text, {**extra, "area": (16, 8, 0, 8)}]]


def masked_quarters(positive: list) -> list:
    """As Conditioning (Set Mask) with *mask bounds*: each half is sampled by itself, in its box."""
    ((text, extra),) = positive
    left = halves()[:1]
    return [[text, {**extra, "mask": m, "mask_strength": 1.0, "set_area_to_bounds": True}] for m in (left, 1 - left)]


def flipped(sigmas: torch.Tensor) -> torch.Tensor:
    """As the host's Flip Sigmas: from the picture to noise, for unsampling."""
    back = sigmas.flip(0)
    back[0] = max(float(back[0]), 1e-4)
    return back


CALLERS = [
    Caller("plain"),
    Caller("batch", like="batch", sampling={"batch": 4}),
    Caller("row by row", wrapped(row_by_row)),
    Caller("row by row, batch", wrapped(row_by_row), like="batch", sampling={"batch": 4}),
    Caller("rows twice", wrapped(twice)),
    Caller("windows", windows, like="batch", sampling={"batch": 4}),
    Caller("extra pass", perturbed),
    Caller("tiles one by one", tiled(1), like="tiles one by one"),
    Caller("tiles by twos", tiled(2), like="tiles one by one"),
    Caller("tiles together", tiled(4), like="tiles one by one"),
    Caller("tiles one by one, batch", tiled(1), like="tiles one by one, batch", sampling={"batch": 2}),
    Caller("tiles together, batch", tiled(4), like="tiles one by one, batch", sampling={"batch": 2}),
    Caller("areas", positive=quarters, like="areas"),
    Caller("areas row by row", wrapped(row_by_row), quarters, like="areas"),
    Caller("masks with bounds", positive=masked_quarters, like="masks with bounds"),
    Caller("chunks in the other order", wrapped(other_order)),
    Caller("flipped schedule", like="flipped schedule", sampling={"levels": flipped, "cfg": 2.0}),
]
BY_NAME = {caller.name: caller for caller in CALLERS}


def sample(parts: Any, caller: Caller, model: Any, positive: list) -> torch.Tensor:
    return tiny.sample(caller.wrap(model), caller.positive(positive), parts.negative, **SAMPLING, **caller.sampling)


def plain_prompt(parts: Any) -> list:
    from likeness.hosts.comfy.text import encode

    return encode(parts.clip, PROMPT).conditioning


def assert_same_effect(called: tuple[torch.Tensor, torch.Tensor], known: tuple[torch.Tensor, torch.Tensor]) -> None:
    """Within 1% of the effect's mean, and the rounding by which the caller changes the plain model's own pictures."""
    (with_caller, vanilla), (alone, plain) = called, known
    rounding, effect = (vanilla - plain).abs().mean(), (alone - plain).abs().mean()
    assert rounding < 1e-3 * plain.abs().mean(), "the caller itself changes the picture"
    assert (with_caller - alone).abs().mean() <= 0.01 * effect + 2 * rounding


@pytest.fixture(scope="module")
def made(parts: Any) -> Callable[[Caller, Treatment | None], torch.Tensor]:
    """What a caller gets with a treatment at full strength, or without one; each sampled once."""

    @cache
    def sampled(caller: Caller, treatment: Treatment | None) -> torch.Tensor:
        treated = treatment.patch(parts, 1.0) if treatment else (parts.model, plain_prompt(parts))
        return sample(parts, caller, *treated)

    return sampled


@pytest.fixture(scope="module", params=CALLERS, ids=lambda caller: caller.name)
def called(parts: Any, made: Callable, request: pytest.FixtureRequest) -> Iterator[tuple[Caller, torch.Tensor]]:
    """A caller and its vanilla picture, which is the same when every treatment has been there."""
    vanilla = made(request.param, None)
    yield request.param, vanilla
    assert torch.equal(sample(parts, request.param, parts.model, plain_prompt(parts)), vanilla), "something stayed"


@pytest.mark.parametrize("treatment", TREATMENTS, ids=lambda treatment: treatment.name)
def test_caller(parts: Any, made: Callable, called: tuple, treatment: Treatment, caplog: Any) -> None:
    caller, vanilla = called
    with caplog.at_level("WARNING", logger="likeness"):
        out = made(caller, treatment)
    assert not [record for record in caplog.records if record.name == "likeness"]
    assert torch.equal(sample(parts, caller, *treatment.patch(parts, 0.0)), vanilla)
    assert not torch.allclose(out, vanilla, **CLOSE)
    known = BY_NAME[caller.like or "plain"]
    assert_same_effect((out, vanilla), (made(known, treatment), made(known, None)))


def test_a_picture_of_a_batch_is_the_picture_alone(parts: Any) -> None:
    model, positive = magicface(alpha=0.0)(parts, 1.0)
    batch = tiny.sample(model, positive, parts.negative, **SAMPLING, batch=3)
    for n in range(3):
        alone = tiny.sample(model, positive, parts.negative, **SAMPLING, seed=n)
        torch.testing.assert_close(batch[n : n + 1], alone, **CLOSE)


def test_tiles_that_cannot_be_placed_are_told_once(parts: Any, caplog: pytest.LogCaptureFixture) -> None:
    """A pack that changes its crops: their place is unknown, so no map and no region acts in them."""

    def shifted(apply_model: Callable, args: dict) -> torch.Tensor:
        x, t, c = args["input"], args["timestep"], args["c"]
        half = x.shape[-1] // 2
        return torch.cat([apply_model(part * 1.001, t, **c) for part in (x[..., :half], x[..., half:])], dim=-1)

    model, positive = magicface(alpha=0.0)(parts, 1.0)
    caller = Caller("shifted", wrapped(shifted))
    with caplog.at_level("WARNING", logger="likeness"):
        out = sample(parts, caller, model, positive)
    assert caplog.text.count("cannot be told which parts") == 1
    assert torch.equal(out, sample(parts, caller, parts.model, plain_prompt(parts)))


@pytest.mark.parametrize("treatment", TREATMENTS, ids=lambda treatment: treatment.name)
@pytest.mark.parametrize("sigmas", [[14.6], [0.0]])
def test_one_noise_level_is_left_alone(parts: Any, treatment: Treatment, sigmas: list[float]) -> None:
    model, positive = treatment.patch(parts, 1.0)
    outs = []
    for patched in (model, parts.model):
        guider = comfy.samplers.CFGGuider(patched)
        guider.set_conds(positive, parts.negative)
        noise = tiny.noise()
        with torch.inference_mode():
            sampler = comfy.samplers.sampler_object("euler")
            outs.append(
                guider.sample(noise, torch.zeros_like(noise), sampler, torch.tensor(sigmas), disable_pbar=True, seed=0)
            )
    assert torch.equal(*outs)
