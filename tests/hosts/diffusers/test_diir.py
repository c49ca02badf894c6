"""DIIR on the headless pipeline, on the miniature."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from lab.people import draw_person
from likeness.core.diir.inversion import invert, round_trip
from likeness.core.diir.request import DiirRequest
from likeness.core.errors import LikenessError
from likeness.core.magicface.request import MagicFaceRequest
from likeness.core.magicid.encoder import FaceFeatures
from likeness.core.magicid.run import PlacedIdentity
from likeness.core.persona.mapper import Mapper, MapperConfig
from likeness.core.persona.persona import Persona
from likeness.core.persona.stages import Stages
from likeness.core.persona.text import supercategory_embedding
from likeness.faces.interface import Face
from likeness.formats.magicid import MagicIdWeights, load_magicid
from likeness.hosts.diffusers import diir
from likeness.hosts.diffusers.diir import FaceTarget, Repair, repair_faces, small_faces, target_of
from likeness.hosts.diffusers.miniature import miniature
from likeness.hosts.diffusers.pipeline import Pipeline
from likeness.miniature.models import weights_file

STEPS, SIDE = 3, 64
SHORT = DiirRequest(steps=STEPS)
LEFT, RIGHT = Face((20.0, 18.0, 40.0, 44.0), 1.0), Face((80.0, 20.0, 98.0, 44.0), 1.0)


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return replace(miniature(), side=SIDE)


@pytest.fixture(scope="module")
def picture() -> Tensor:
    return torch.nn.functional.interpolate(draw_person(3, 128).image[None], (96, 128))[0]


@pytest.fixture(scope="module")
def target(pipeline: Pipeline) -> FaceTarget:
    one = draw_person(1, SIDE)
    return target_of(pipeline, [one.image], "person", [one.mask], weight=1.0)


def count_rows(pipeline: Pipeline, work) -> int:
    seen = []
    handle = pipeline.unet.register_forward_pre_hook(lambda module, given: seen.append(len(given[0])))
    try:
        work()
    finally:
        handle.remove()
    return sum(seen)


@pytest.mark.parametrize("options", [{}, {"mode": "fast"}, {"keep_style": "latents"}, {"keep_style": "paper"}])
def test_a_face_is_repaired_and_nothing_else_changes(
    pipeline: Pipeline, picture: Tensor, target: FaceTarget, options: dict
) -> None:
    processors, hooks = dict(pipeline.unet.attn_processors), _hooks(pipeline)
    made = repair_faces(pipeline, [picture], [Repair(0, LEFT, target)], DiirRequest(steps=STEPS, **options))
    changed = made.changed[0]
    assert torch.equal(made.pictures[0][:, changed == 0], picture[:, changed == 0])
    assert float((made.pictures[0] - picture)[:, changed > 0.9].abs().mean()) > 0.01
    assert pipeline.unet.attn_processors == processors and _hooks(pipeline) == hooks


def _hooks(pipeline: Pipeline) -> int:
    return sum(len(module._forward_hooks) for module in pipeline.unet.modules())


def test_who_it_becomes_matters(pipeline: Pipeline, picture: Tensor, target: FaceTarget) -> None:
    drawn = [
        repair_faces(pipeline, [picture], [Repair(0, LEFT, one)], SHORT).pictures[0]
        for one in (target, FaceTarget(target.prompt), FaceTarget("a sketch of a person, portrait"))
    ]
    for i, a in enumerate(drawn):
        assert all(not torch.allclose(a, b, atol=1e-2) for b in drawn[i + 1 :])


def test_rows_stay_within_the_stated_limit(pipeline: Pipeline, picture: Tensor, target: FaceTarget) -> None:
    nobody = FaceTarget(target.prompt)
    for request in (SHORT, replace(SHORT, mode="fast"), replace(SHORT, corrections=1), replace(SHORT, strength=0.5)):
        rows = count_rows(pipeline, lambda r=request: repair_faces(pipeline, [picture], [Repair(0, LEFT, nobody)], r))
        assert rows == request.rows
    again = replace(SHORT, keep_style="paper", cache="recompute")
    rows = count_rows(pipeline, lambda: repair_faces(pipeline, [picture], [Repair(0, LEFT, nobody)], again))
    assert rows == SHORT.rows + STEPS
    fresh = replace(target, request=replace(target.request, cache=type(target.request.cache)()))
    both = [Repair(0, LEFT, fresh), Repair(0, RIGHT, fresh)]
    assert count_rows(pipeline, lambda: repair_faces(pipeline, [picture], both, SHORT)) == 2 * SHORT.rows + STEPS


@pytest.mark.parametrize("options", [{}, {"mode": "fast"}, {"keep_style": "paper"}])
def test_a_face_is_the_same_alone_in_a_batch_and_in_chunks(
    pipeline: Pipeline, picture: Tensor, target: FaceTarget, options: dict
) -> None:
    request = DiirRequest(steps=STEPS, **options)
    other = FaceTarget("a picture of a woman, portrait")
    repairs = [Repair(0, LEFT, target), Repair(1, RIGHT, other), Repair(1, LEFT, target)]
    pictures = [picture, picture.flip(2)]
    whole = repair_faces(pipeline, pictures, repairs, request)
    for rows in (1, 2):
        parts = repair_faces(pipeline, pictures, repairs, request, rows=rows)
        for a, b in zip(whole.pictures, parts.pictures, strict=True):
            assert float((a - b).abs().max()) <= 1e-4
    alone = repair_faces(pipeline, pictures[:1], repairs[:1], request)
    assert float((alone.pictures[0] - whole.pictures[0]).abs().max()) <= 1e-4


def test_cache_modes_agree(pipeline: Pipeline, picture: Tensor, target: FaceTarget) -> None:
    made = [
        repair_faces(pipeline, [picture], [Repair(0, LEFT, target), Repair(0, RIGHT, target)],
                     DiirRequest(steps=STEPS, keep_style="paper", cache=cache)).pictures[0]
        for cache in ("device", "host", "recompute")
    ]  # fmt: skip
    assert torch.equal(made[0], made[1]) and torch.equal(made[0], made[2])
    latents = repair_faces(pipeline, [picture], [Repair(0, LEFT, target)], replace(SHORT, keep_style="latents"))
    assert not torch.allclose(made[0], latents.pictures[0], atol=1e-3)


def test_references_rows_are_not_taken_for_faces(
    pipeline: Pipeline, picture: Tensor, target: FaceTarget, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reference of weight 0 changes nothing, in the paper's mode too, where every attention is listened to."""
    request = replace(SHORT, keep_style="paper")
    silent = MagicFaceRequest(tuple(replace(r, weight=0.0) for r in target.request.references), alpha=1.0)
    seen = []
    plain = diir.FeatureFusion.output

    def output(self: diir.FeatureFusion, block: object, x: Tensor, faces: list[int]) -> Tensor:
        seen.append(len(x))
        return plain(self, block, x, faces)

    monkeypatch.setattr(diir.FeatureFusion, "output", output)
    off = repair_faces(pipeline, [picture], [Repair(0, LEFT, replace(target, request=silent))], request)
    without = repair_faces(pipeline, [picture], [Repair(0, LEFT, FaceTarget(target.prompt))], request)
    assert torch.equal(off.pictures[0], without.pictures[0])
    before = len(seen)
    fresh = replace(target, request=replace(target.request, cache=type(target.request.cache)()))
    repair_faces(pipeline, [picture], [Repair(0, LEFT, fresh)], request)
    assert len(seen) - before == before // 2, "the references' own forwards are not shown"


def test_a_persona_speaks_in_the_crop(pipeline: Pipeline, picture: Tensor) -> None:
    torch.manual_seed(3)
    text = pipeline.text
    word = supercategory_embedding(text, pipeline.tokenizer.pieces("person"))
    mapper = Mapper(MapperConfig(text.widths, tokens=4, image_width=16), word).eval().requires_grad_(False)
    persona = Persona(mapper, Stages(200, 700), "person", torch.randn(1, 16))
    speaking = FaceTarget("a picture of a S*, portrait", personas={"S*": persona})
    made = {}
    for name, options in (("off", {}), ("device", {"keep_style": "paper"}),
                          ("again", {"keep_style": "paper", "cache": "recompute"})):  # fmt: skip
        request = DiirRequest(steps=STEPS, **options)
        made[name] = repair_faces(pipeline, [picture], [Repair(0, LEFT, speaking)], request).pictures[0]
    plain = repair_faces(pipeline, [picture], [Repair(0, LEFT, FaceTarget("a picture of a person, portrait"))], SHORT)
    assert not torch.allclose(made["off"], plain.pictures[0], atol=1e-2)
    assert torch.equal(made["device"], made["again"])


@pytest.fixture(scope="module")
def weights() -> MagicIdWeights:
    return load_magicid(weights_file("magicid"))


@pytest.mark.parametrize("options", [{}, {"mode": "fast"}, {"keep_style": "paper"}])
def test_an_identity_acts_in_the_crop(
    pipeline: Pipeline, picture: Tensor, target: FaceTarget, weights: MagicIdWeights, options: dict
) -> None:
    """By MagicID's attention, alone and beside references; one of scale 0 changes nothing, bit for bit."""
    processors, request = dict(pipeline.unet.attn_processors), DiirRequest(steps=STEPS, **options)
    encoder, attention = weights.encoder.float(), weights.attention["unet"]
    vector = torch.nn.functional.normalize(torch.randn(1, 128, generator=torch.Generator().manual_seed(1)))
    with torch.no_grad():
        one = PlacedIdentity(encoder(FaceFeatures(vector=vector))[0], encoder.unconditional()[0])
    nobody = FaceTarget(target.prompt)

    def drawn(whom: FaceTarget, scale: float | None = None) -> Tensor:
        if scale is not None:
            whom = replace(whom, identity=replace(one, scale=scale), attention=attention)
        return repair_faces(pipeline, [picture], [Repair(0, LEFT, whom)], request).pictures[0]

    plain = drawn(nobody)
    assert torch.equal(drawn(nobody, 0.0), plain)
    assert not torch.allclose(drawn(nobody, 1.0), plain, atol=1e-2)
    assert not torch.allclose(drawn(target, 1.0), drawn(target), atol=1e-2)
    assert pipeline.unet.attn_processors == processors


def test_an_identity_needs_its_layers_and_no_personas(weights: MagicIdWeights) -> None:
    one = PlacedIdentity(torch.zeros(4, 128), torch.zeros(4, 128))
    with pytest.raises(LikenessError, match="identity layers"):
        FaceTarget(identity=one)
    with pytest.raises(LikenessError, match="personas and an identity"):
        FaceTarget(identity=one, attention=weights.attention["unet"], personas={"S*": None})


def test_nothing_to_repair_and_the_gate(pipeline: Pipeline, picture: Tensor) -> None:
    made = repair_faces(pipeline, [picture], [], SHORT)
    assert made.pictures[0] is picture
    for nothing in (replace(SHORT, strength=0), DiirRequest(steps=1, mode="fast", fast_strength=0.5)):
        assert repair_faces(pipeline, [picture], [Repair(0, LEFT)], nothing).pictures[0] is picture
    large = Face((0.0, 0.0, 90.0, 120.0), 1.0)
    assert small_faces([LEFT, large], SHORT) == [LEFT]
    assert small_faces([LEFT, large], replace(SHORT, max_face_px=0)) == [LEFT, large]


def test_a_stop_leaves_the_model_as_it_was(pipeline: Pipeline, picture: Tensor, target: FaceTarget) -> None:
    processors, hooks = dict(pipeline.unet.attn_processors), _hooks(pipeline)
    for stage in ("inversion", "restoration"):
        def stop(now: str, done: int, total: int, clean: Tensor, wanted: str = stage) -> None:
            if now == wanted and done == 2:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            repair_faces(pipeline, [picture], [Repair(0, LEFT, target)], replace(SHORT, keep_style="paper"),
                         progress=stop)  # fmt: skip
        assert pipeline.unet.attn_processors == processors and _hooks(pipeline) == hooks


def test_eps_and_v_prediction_of_one_model_agree(pipeline: Pipeline, picture: Tensor) -> None:
    """The same estimate told as v gives the same repair."""
    class AsVelocity(torch.nn.Module):
        """The UNet, its noise estimate turned into a velocity: ``v = (eps - sqrt(1 - a) x) / sqrt(a)``."""

        def __init__(self, unet: torch.nn.Module, alphas: Tensor) -> None:
            super().__init__()
            self.unet, self.alphas = unet, alphas

        def __getattr__(self, name: str):
            try:
                return super().__getattr__(name)
            except AttributeError:
                return getattr(super().__getattr__("unet"), name)

        def forward(self, x: Tensor, timestep: Tensor, **options):
            (eps,) = self.unet(x, timestep, **options)
            a = self.alphas[int(timestep)]
            return ((eps - (1 - a).sqrt() * x) / a.sqrt(),)

    velocity = replace(
        pipeline, unet=AsVelocity(pipeline.unet, pipeline.alphas_cumprod),
        schedule={**pipeline.schedule, "prediction_type": "v_prediction"},
    )  # fmt: skip
    repairs = [Repair(0, LEFT, FaceTarget())]
    eps = repair_faces(pipeline, [picture], repairs, replace(SHORT, guidance=2))
    v = repair_faces(velocity, [picture], repairs, replace(SHORT, guidance=2))
    assert torch.allclose(eps.pictures[0], v.pictures[0], atol=2e-3)


def test_round_trip_on_the_trained_model(pipeline: Pipeline) -> None:
    run = diir._Run(pipeline, [], DiirRequest(steps=6), 0, None)
    latents = pipeline.encode(draw_person(2, SIDE).image[None])
    scale = float(latents.std())
    with run._plain(FaceTarget(), None) as plain:
        errors = [float(round_trip(plain, invert(plain, latents, run.sigmas, k))) / scale for k in (0, 1, 2)]
    assert errors[0] < 0.5 and errors[1] < errors[0] and errors[2] < errors[1]
