"""SDXL's pair of text encoders: what training sees and what sampling encodes are the same contexts."""

from __future__ import annotations

import comfy.sd
import comfy.sdxl_clip
import comfy.supported_models_base
import pytest
import torch

from likeness.core.errors import LikenessError
from likeness.core.persona.mapper import Mapper, MapperConfig
from likeness.core.persona.persona import Persona
from likeness.core.persona.stages import Stages
from likeness.core.persona.text import Speaker, encode, lay_out
from likeness.hosts.comfy.persona.text import NamedPersona, TokenizerAdapter, encode_at, mark_prompt, text_widths
from likeness.hosts.comfy.persona.training_host import text_copies

WIDTHS = (32, 64)


def tiny_config(width: int) -> dict:
    return {
        "hidden_size": width, "intermediate_size": 2 * width, "num_hidden_layers": 3,
        "num_attention_heads": width // 16,
    }  # fmt: skip


@pytest.fixture(scope="module")
def clip():
    target = comfy.supported_models_base.ClipTarget(comfy.sdxl_clip.SDXLTokenizer, comfy.sdxl_clip.SDXLClipModel)
    options = {"clip_l_model_config": tiny_config(32), "clip_g_model_config": tiny_config(64), "dtype": torch.float32}
    made = comfy.sd.CLIP(target, parameters=1, model_options=options)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in made.cond_stage_model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.15)
    return made


@pytest.fixture(scope="module")
def persona() -> Persona:
    torch.manual_seed(0)
    mapper = Mapper(MapperConfig(WIDTHS, tokens=3, image_width=16), torch.randn(sum(WIDTHS)))
    return Persona(mapper.eval().requires_grad_(False), Stages(), "face", torch.randn(1, 16))


@pytest.mark.parametrize("prompt", ["a photo of S* in the snow", "S*"])
def test_training_and_sampling_see_the_same_contexts(clip, persona, prompt):
    assert text_widths(clip) == WIDTHS
    timesteps, chain = torch.tensor([700, 450]), (NamedPersona("S*", persona),)
    sampled = encode_at(clip, mark_prompt(clip, prompt, chain), chain, timesteps)
    tokenizer, text = TokenizerAdapter(clip), text_copies(clip, torch.device("cpu"))
    layout = lay_out(prompt, {"S*": 3}, tokenizer, tokenizer.bos)
    speaker: Speaker = persona.speaker(timesteps, layout.slots["S*"])
    with torch.no_grad():
        trained = encode(text, layout.ids.expand(2, -1), [speaker])
    assert sampled.key.shape == (2, 77, sum(WIDTHS))
    for ours, theirs in zip(sampled, trained, strict=True):
        assert (ours - theirs).abs().max() < 1e-3 * theirs.abs().max()
    assert (sampled.key - sampled.value).abs().max() > 1e-2


def test_plain_prompt_is_the_hosts(clip):
    tokenizer, text = TokenizerAdapter(clip), text_copies(clip, torch.device("cpu"))
    with torch.no_grad():
        ours = encode(text, lay_out("a man in the snow", {}, tokenizer, tokenizer.bos).ids[None]).key
    theirs = clip.encode_from_tokens(clip.tokenize("a man in the snow"))
    assert (ours - theirs).abs().max() < 1e-3 * theirs.abs().max()


def test_persona_of_one_encoder_is_refused(clip):
    mapper = Mapper(MapperConfig((32,), image_width=0), torch.randn(32))
    with pytest.raises(LikenessError, match="widths"):
        Persona(mapper, Stages(), "face").check_base(text_widths(clip))
