"""Personas and MagicFace in one run of the headless pipeline, on the miniature."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from diffusers import DDIMInverseScheduler
from support.attention import head_mean

from lab.people import draw_person
from likeness.core.errors import LikenessError
from likeness.core.magicface.call import MagicFaceCall
from likeness.core.magicface.maps import MapBuilder
from likeness.core.magicface.request import MagicFaceRequest
from likeness.core.persona.mapper import Mapper, MapperConfig
from likeness.core.persona.persona import Persona
from likeness.core.persona.stages import Stages
from likeness.core.persona.text import supercategory_embedding
from likeness.hosts.diffusers.miniature import miniature
from likeness.hosts.diffusers.persona import supercategory_prompt
from likeness.hosts.diffusers.pipeline import Pipeline
from likeness.hosts.diffusers.sampling import Conditioning, Rows, guided_denoiser, sample

PROMPT = "a picture of a S* wearing a red hat, portrait, in the snow"
STEPS, SIDE, WORDS = 4, 64, 4  # 751, 501, 251, 1
PERSON, HAT = 5, 9  # tokens of the plain prompt
SPOKEN_PERSON, SPOKEN_HAT = [5, 6, 7, 8], [12]


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return miniature()


def persona(stages: Stages) -> Persona:
    torch.manual_seed(3)
    text = miniature().text
    config = MapperConfig(text.widths, tokens=WORDS, image_width=16)
    word = supercategory_embedding(text, miniature().tokenizer.pieces("person"))
    mapper = Mapper(config, word).eval().requires_grad_(False)
    return Persona(mapper, stages, "person", torch.randn(1, 16))


SPEAKING = Stages(200, 700)
SILENT = Stages(800, 990, "supercategory")  # the schedule begins below it


def request(pipeline: Pipeline, words: tuple[str, ...] = ("person",), **options) -> MagicFaceRequest:
    plain = PROMPT.replace("S*", "person")
    person = draw_person(1, SIDE)
    weight = options.pop("weight", 1.0)
    references = (pipeline.reference(person.image, word, plain, person.mask, weight) for word in words)
    return MagicFaceRequest(tuple(references), **{"alpha": 0.5, **options})


def draw(pipeline: Pipeline, prompt: str = PROMPT, stages: Stages | None = SPEAKING, magicface=None) -> torch.Tensor:
    personas = {"S*": persona(stages)} if stages else None
    return pipeline.sample(
        pipeline.noise([1, 2], SIDE, SIDE), prompt, personas=personas, request=magicface, steps=STEPS
    )


def test_each_is_itself_bit_for_bit_where_the_other_is_off(pipeline: Pipeline) -> None:
    plain = PROMPT.replace("S*", "person")
    persona_alone = draw(pipeline)
    magicface_alone = draw(pipeline, plain, None, request(pipeline))
    assert torch.equal(draw(pipeline, magicface=request(pipeline, weight=0.0)), persona_alone)
    assert torch.equal(draw(pipeline, magicface=MagicFaceRequest(())), persona_alone)
    assert torch.equal(draw(pipeline, stages=SILENT, magicface=request(pipeline)), magicface_alone)
    assert torch.equal(draw(pipeline, stages=SILENT), draw(pipeline, plain, None))


def test_both_act(pipeline: Pipeline) -> None:
    plain = PROMPT.replace("S*", "person")
    before = dict(pipeline.unet.attn_processors)
    together = draw(pipeline, magicface=request(pipeline))
    for alone in (draw(pipeline), draw(pipeline, plain, None, request(pipeline)), draw(pipeline, plain, None)):
        assert (together - alone).norm() > 1e-2 * alone.norm()
    assert pipeline.unet.attn_processors == before


def test_concepts_are_found_in_the_spoken_words(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """The map's columns of 'person' and 'hat' are the attention to the persona's words and to the moved word."""
    looked, added = [], []
    look, add = MagicFaceCall.cross_attention, MapBuilder.add

    def spy_look(call, block, q, k, heads, token_maps=None):
        row = next(row for row in call._watched if call.conditional[row])
        looked.append((q[row], k[row], heads, token_maps[row] is not None, call._watched.index(row)))
        look(call, block, q, k, heads, token_maps)

    def spy_add(builder, q, k, cross, heads, grid):
        added.append(cross)
        add(builder, q, k, cross, heads, grid)

    monkeypatch.setattr(MagicFaceCall, "cross_attention", spy_look)
    monkeypatch.setattr(MapBuilder, "add", spy_add)
    draw(pipeline, magicface=request(pipeline, ("person", "hat"), alpha=0.0))
    assert len(looked) == len(added) and {spoken for *_, spoken, _ in looked} == {True, False}
    for (q, k, heads, spoken, row), columns in zip(looked, added, strict=True):
        cross = head_mean(q, k, heads)
        assert cross.shape[-1] == 77, "the keys' half of the stacked contexts"
        person, hat = (SPOKEN_PERSON, SPOKEN_HAT) if spoken else ([PERSON], [HAT])
        torch.testing.assert_close(columns[row, :, 0], cross[:, person].sum(-1))
        torch.testing.assert_close(columns[row, :, 1], cross[:, hat].sum(-1))


def test_the_model_is_left_as_found_when_a_run_is_stopped(pipeline: Pipeline) -> None:
    before = dict(pipeline.unet.attn_processors)

    def stop(done, total, latents):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pipeline.generate(PROMPT, [1], request(pipeline), STEPS, width=SIDE, height=SIDE, callback=stop,
                          personas={"S*": persona(SPEAKING)})
    assert pipeline.unet.attn_processors == before


def test_an_unknown_placeholder_and_a_missing_concept_are_told(pipeline: Pipeline) -> None:
    with pytest.raises(LikenessError, match="exactly once"):
        draw(pipeline, "a picture of a person")
    with pytest.raises(LikenessError, match="'cat'"):
        request(pipeline, ("cat",))
    assert supercategory_prompt(PROMPT, {"S*": persona(SILENT)}) == PROMPT.replace("S*", "person")


# --- the loop ---------------------------------------------------------------------------------------------------------


def test_the_loop_inverts(pipeline: Pipeline) -> None:
    """Clean latents to noise and back with the same denoiser: what is left is DDIM's error, and falls with steps."""
    person = draw_person(1, SIDE)
    clean, cond = pipeline.encode(person.image[None]), pipeline.conditioning(["a picture of a person"])
    errors = []
    for steps in (10, 40):
        inverse = DDIMInverseScheduler(**{**pipeline.schedule, "clip_sample": False, "set_alpha_to_one": False})
        inverse.set_timesteps(steps)
        denoise = guided_denoiser(pipeline.unet, cond)
        noise = sample(denoise, clean, inverse)
        assert abs(float(noise.std()) - 1) < 0.25
        errors.append(float((sample(denoise, noise, pipeline.scheduler(steps)) - clean).norm() / clean.norm()))
    assert errors[1] < 0.5 * errors[0] and errors[1] < 0.2


def test_rows_of_texts_with_and_without_values() -> None:
    plain, split = Conditioning(torch.zeros(1, 3, 2)), Conditioning(torch.ones(1, 3, 2), {}, 2 * torch.ones(1, 3, 2))
    rows = Rows.of([plain, split], 2)
    assert rows.split and rows.context.shape == (4, 6, 2)
    assert rows.context[:, 3:].amax(dim=(1, 2)).tolist() == [0, 0, 2, 2]
    assert rows.context[:, :3].amax(dim=(1, 2)).tolist() == [0, 0, 1, 1]
    assert not Rows.of([plain, plain]).split


def test_a_pipeline_can_be_changed_in_parts(pipeline: Pipeline) -> None:
    velocity = dataclasses.replace(pipeline, schedule={**pipeline.schedule, "prediction_type": "v_prediction"})
    assert velocity.prediction == velocity.scheduler(3).config.prediction_type == "v_prediction"
    assert torch.equal(velocity.alphas_cumprod, pipeline.alphas_cumprod)
