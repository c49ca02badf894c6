"""Personas inside the real ComfyUI: contexts, sampling on both hosts, patches of others, interrupts."""

from __future__ import annotations

from dataclasses import replace

import comfy.hooks
import comfy.model_management
import comfy.sample
import comfy.samplers
import pytest
import torch
from comfy.ldm.modules.attention import optimized_attention
from comfy_extras import nodes_hooks, nodes_photomaker
from support.comfy import tiny
from support.persona_tiny import ddim_timesteps

from likeness.core.errors import LikenessError
from likeness.core.persona.mapper import Mapper, MapperConfig
from likeness.core.persona.persona import Persona
from likeness.core.persona.stages import Stages
from likeness.core.schedule import sigma_table, timesteps_of
from likeness.hosts.comfy.persona.apply import apply
from likeness.hosts.comfy.persona.plan import PLAN_KEY
from likeness.hosts.comfy.persona.session import KEY, PersonaSession, PersonaSystem
from likeness.hosts.comfy.persona.text import (
    NamedPersona,
    TokenizerAdapter,
    encode_at,
    join,
    mark_prompt,
    plain_text,
    text_widths,
    unwritten,
)
from likeness.hosts.comfy.wrappers import install
from likeness.hosts.diffusers.persona import clip_text, persona_contexts
from likeness.hosts.diffusers.pipeline import Pipeline
from nodes import ConditioningAverage, ConditioningConcat, ConditioningSetTimestepRange

SIZE = (8, 8)
PROMPT = "a photo of S* in the snow"


def make_persona(seed: int = 0, tokens: int = 4, stages: Stages | None = None, residual: bool = True) -> Persona:
    torch.manual_seed(seed)
    config = MapperConfig((tiny.CONTEXT_WIDTH,), tokens=tokens, image_width=16 if residual else 0)
    mapper = Mapper(config, torch.randn(tiny.CONTEXT_WIDTH) * 0.5).eval().requires_grad_(False)
    return Persona(mapper, stages or Stages(), "face", torch.randn(1, 16) if residual else None)


def named(*personas: Persona) -> tuple[NamedPersona, ...]:
    if len(personas) == 1:
        return (NamedPersona("S*", personas[0]),)
    return tuple(NamedPersona(f"S{i + 1}*", p) for i, p in enumerate(personas))


@pytest.fixture(scope="module")
def other_host(parts) -> Pipeline:
    """The same weights on diffusers and transformers, with the host's tokenizer."""
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(1)
    encoder = CLIPTextModel(CLIPTextConfig(**tiny.TEXT)).eval()
    encoder.load_state_dict(
        {k: v.half().float() if v.is_floating_point() else v for k, v in encoder.state_dict().items()}
    )
    return Pipeline(
        unet=tiny.diffusers_unet(),
        text=clip_text(encoder),
        tokenizer=TokenizerAdapter(parts.clip),
        encode_image=lambda x: x,
        decode_image=lambda x: x,
    )


def run(model, positive, negative, sigmas, sampler="ddim", batch=1, cfg=4.0, seed=0, callback=None):
    noise = tiny.noise(SIZE, batch=batch, seed=seed)
    with torch.inference_mode():
        out = comfy.sample.sample_custom(
            model,
            noise,
            cfg,
            comfy.samplers.sampler_object(sampler),
            sigmas,
            positive,
            negative,
            torch.zeros_like(noise),
            callback=callback,
            disable_pbar=True,
            seed=seed,
        )
    return out.clone()


def table(parts) -> torch.Tensor:
    return parts.model.get_model_object("model_sampling").sigmas


def ddim_sigmas(parts, steps=10) -> torch.Tensor:
    return torch.cat([table(parts)[ddim_timesteps(steps)], torch.zeros(1)])


@pytest.mark.parametrize("prompt", [PROMPT, "S* wearing a red hat", "a painting with a house and S*"])
def test_contexts_agree_with_the_other_host(parts, other_host, prompt):
    persona, ts = make_persona(), [781, 601, 401]
    personas = named(persona)
    with torch.inference_mode():
        ours = encode_at(parts.clip, mark_prompt(parts.clip, prompt, personas), personas, torch.tensor(ts))
    theirs = persona_contexts(other_host, prompt, {"S*": persona}, ts).dynamic
    assert torch.allclose(ours.key, theirs.key, atol=2e-5)
    assert torch.allclose(ours.value, theirs.value, atol=2e-5)
    assert (ours.key - ours.value).abs().max() > 1e-2


def test_two_personas_agree_with_the_other_host(parts, other_host):
    one, two = make_persona(1), make_persona(2, tokens=2)
    prompt, ts = "S2* in the style of S1*", [700, 450]
    with torch.inference_mode():
        personas = named(one, two)
        ours = encode_at(parts.clip, mark_prompt(parts.clip, prompt, personas), personas, torch.tensor(ts))
    theirs = persona_contexts(other_host, prompt, {"S1*": one, "S2*": two}, ts).dynamic
    assert torch.allclose(ours.key, theirs.key, atol=2e-5) and torch.allclose(ours.value, theirs.value, atol=2e-5)


def test_pictures_agree_with_the_other_host(parts, other_host):
    """The same DDIM schedule, guidance and noise through both hosts; the greatest difference is stated."""
    persona, steps = make_persona(), 10
    model, positive = apply(parts.model, parts.clip, named(persona), PROMPT)
    sigmas = table(parts)[ddim_timesteps(steps)]
    last = table(parts)[:1]
    ours = run(model, positive, parts.negative, torch.cat([sigmas, last]), cfg=4.0)
    start = tiny.noise(SIZE) * sigmas[0] / (1 + sigmas[0] ** 2).sqrt()
    theirs = other_host.sample(start, PROMPT, personas={"S*": persona}, steps=steps, scale=4.0)
    theirs = theirs * (1 + last**2).sqrt()
    theirs = theirs / parts.model.model.latent_format.scale_factor
    difference = (ours - theirs).abs().max().item()
    assert difference < 2e-3 * theirs.abs().max().item(), difference


def test_persona_speaks_only_in_its_stage(parts):
    model, positive = apply(parts.model, parts.clip, named(make_persona()), PROMPT)
    early = table(parts)[[981, 901, 850]]
    plain = [[positive[0][0], {k: v for k, v in positive[0][1].items() if k != PLAN_KEY}]]
    assert torch.equal(run(model, positive, parts.negative, early), run(parts.model, plain, parts.negative, early))
    dynamic = table(parts)[[790, 600, 500]]
    assert not torch.equal(
        run(model, positive, parts.negative, dynamic), run(parts.model, plain, parts.negative, dynamic)
    )


def test_model_without_a_carrying_prompt_is_vanilla_bit_for_bit(parts):
    model, _ = apply(parts.model, parts.clip, named(make_persona()), PROMPT)
    sigmas = ddim_sigmas(parts, 4)
    prompt = parts.clip.encode_from_tokens_scheduled(parts.clip.tokenize("a man"))
    assert torch.equal(run(model, prompt, parts.negative, sigmas), run(parts.model, prompt, parts.negative, sigmas))


@pytest.mark.parametrize(
    ("sampler", "scheduler"),
    [("euler_ancestral", "normal"), ("dpmpp_2m", "karras"), ("heun", "normal"), ("dpm_2", "karras"), ("lcm", "simple")],
)
def test_any_sampler_uses_the_contexts_of_its_noise_level(parts, sampler, scheduler, monkeypatch):
    model, positive = apply(parts.model, parts.clip, named(make_persona()), PROMPT)
    seen, forward = [], PersonaSession.call

    def spy(self, call):
        out = forward(self, call)
        plan = next(iter(self.voices.values())).staged
        seen.append((float(call.sigma.flatten()[0]), self.last and self.last[2], plan))
        return out

    monkeypatch.setattr(PersonaSession, "call", spy)
    sigmas = comfy.samplers.calculate_sigmas(parts.model.get_model_object("model_sampling"), scheduler, 5)
    run(model, positive, parts.negative, sigmas, sampler=sampler)
    stages = Stages()
    for sigma, made, plan in seen:
        t = timesteps_of([sigma], table(parts))[0]
        row = plan.index(t)
        if stages.at(t) == "supercategory":
            assert row is None
        elif stages.at(t) == "dynamic":
            assert abs(plan.timesteps[row] - t) <= min(abs(x - t) for x in plan.timesteps)
        else:
            assert row == plan.held
        if row is not None:
            index = [i for i in range(2) if not torch.equal(made.key[i], made.value[i])]
            assert len(index) == 1, "only the conditional row speaks"
            assert torch.allclose(made.value[index[0]], plan.dynamic.value[row], atol=1e-6)


@pytest.mark.parametrize(("steps", "scheduler"), [(1, "simple"), (2, "simple"), (3, "karras"), (4, "sgm_uniform")])
def test_few_steps_hear_the_persona(parts, steps, scheduler):
    """Turbo and LCM: levels that jump over the stage. The one next to it is where the persona speaks."""
    model, positive = apply(parts.model, parts.clip, named(make_persona()), PROMPT)
    sigmas = comfy.samplers.calculate_sigmas(parts.model.get_model_object("model_sampling"), scheduler, steps)
    plain = [[positive[0][0], {k: v for k, v in positive[0][1].items() if k != PLAN_KEY}]]
    assert not torch.equal(run(model, positive, parts.negative, sigmas), run(model, plain, parts.negative, sigmas))


def test_cond_and_uncond_in_separate_calls(parts, monkeypatch):
    model, positive = apply(parts.model, parts.clip, named(make_persona()), PROMPT)
    sigmas = ddim_sigmas(parts, 4)
    joint = run(model, positive, parts.negative, sigmas)
    monkeypatch.setattr(comfy.samplers, "can_concat_cond", lambda a, b: a is b)
    apart = run(model, positive, parts.negative, sigmas)
    assert (joint - apart).norm() < 5e-3 * joint.norm()


def test_batch_rows_equal_single_pictures(parts):
    model, positive = apply(parts.model, parts.clip, named(make_persona()), PROMPT)
    sigmas = ddim_sigmas(parts, 4)
    both = run(model, positive, parts.negative, sigmas, batch=2)
    for i in range(2):
        single = run(model, positive, parts.negative, sigmas, seed=i)
        assert (both[i : i + 1] - single).norm() < 5e-3 * single.norm()


def test_two_conditionings_with_two_personas(parts):
    """Combined conditionings, each with a persona of its own, on a model that went through Apply twice."""
    model, first = apply(parts.model, parts.clip, named(make_persona(1)), PROMPT)
    model, second = apply(model, parts.clip, named(make_persona(2)), PROMPT)
    sigmas = ddim_sigmas(parts, 4)
    out = [run(model, c, parts.negative, sigmas) for c in (first, second, first + second, second + first)]
    assert not torch.equal(out[0], out[1])
    assert (out[2] - out[3]).norm() < 5e-3 * out[2].norm()
    mean_like = (out[2] - out[0]).abs().mean() < (out[1] - out[0]).abs().mean()
    assert mean_like


def test_persona_in_the_negative_prompt(parts):
    model, conditioning = apply(parts.model, parts.clip, named(make_persona()), PROMPT)
    sigmas = ddim_sigmas(parts, 4)
    plain = parts.negative
    assert not torch.equal(run(model, plain, conditioning, sigmas), run(model, plain, plain, sigmas))


# --- the prompt as the host reads it


def contexts(parts, prompt, persona=None):
    personas = named(persona or make_persona())
    with torch.inference_mode():
        return encode_at(parts.clip, mark_prompt(parts.clip, prompt, personas), personas, torch.tensor([600]))


def test_weights_act_as_the_host_weights(parts):
    plain, heavy = contexts(parts, "a photo of S*"), contexts(parts, "a photo of (S*:1.2)")
    empty = parts.clip.encode_from_tokens(parts.clip.tokenize(""))
    for one, other in ((plain.key, heavy.key), (plain.value, heavy.value)):
        expected = one.clone()
        expected[:, 4:8] = (one[:, 4:8] - empty[:, 4:8]) * 1.2 + empty[:, 4:8]
        assert torch.allclose(other, expected, atol=1e-5)


def test_prompt_over_77_tokens(parts):
    long = "a very long road with many trees and houses " * 9
    first, second = contexts(parts, "S* on " + long), contexts(parts, long + " and S*")
    assert first.key.shape[1] == second.key.shape[1] == 154
    differs = [(c.key != c.value).any(-1)[0].nonzero().flatten() for c in (first, second)]
    assert differs[0].tolist() == [1, 2, 3, 4] and differs[1].min() > 77 and len(differs[1]) == 4
    model, positive = apply(parts.model, parts.clip, named(make_persona()), long + " and S*")
    assert torch.isfinite(run(model, positive, parts.negative, ddim_sigmas(parts, 4))).all()


def test_words_across_two_chunks(parts):
    """Seven words that begin in one chunk and end in the next: each chunk's part is spoken and bent."""
    prompt = "dog " * 72 + "S*"
    found = contexts(parts, prompt, make_persona(tokens=7))
    differs = (found.key != found.value).any(-1)[0].nonzero().flatten()
    assert len(differs) == 7 and differs.min() < 77 <= differs.max()


def test_clip_skip_changes_the_layer_that_is_bent(parts):
    clip = parts.clip.clone()
    clip.clip_layer(-2)
    personas = named(make_persona())
    with torch.inference_mode():
        skipped = encode_at(clip, mark_prompt(clip, PROMPT, personas), personas, torch.tensor([600]))
        host = clip.encode_from_tokens(clip.tokenize("a photo of"))
    assert torch.allclose(skipped.key[:, :4], host[:, :4], atol=1e-5), "causal: words before the persona are plain"
    assert not torch.allclose(skipped.key, contexts(parts, PROMPT).key, atol=1e-3)


def test_encoding_leaves_the_clip_as_it_was(parts):
    before = parts.clip.encode_from_tokens(parts.clip.tokenize("a man"))
    contexts(parts, "a (photo:1.3) of (S*:0.7)")
    assert torch.equal(before, parts.clip.encode_from_tokens(parts.clip.tokenize("a man")))


@pytest.mark.parametrize("word", ["man (young)", "man \\(young\\)"])
def test_brackets_in_the_plain_word_are_part_of_it(parts, word):
    """They are no weights: training sees the same tokens as sampling, however the user has written them."""
    persona = replace(make_persona(), supercategory=unwritten(word))
    pieces = TokenizerAdapter(parts.clip).pieces(persona.supercategory)
    text = plain_text("a photo of S*", named(persona))
    chunk = parts.clip.tokenize(text)["l"][0]
    assert [token for token, _ in chunk][4 : 4 + len(pieces)] == pieces
    assert {weight for _, weight in chunk} == {1.0}


def with_hooks(parts, *strengths, scheduled=True):
    """A CLIP with a LoRA hook on its text encoder: strengths at equal parts of the sampling, by the host's nodes."""
    generator = torch.Generator().manual_seed(3)
    width, name = tiny.CONTEXT_WIDTH, "lora_te_text_model_encoder_layers_0_self_attn_v_proj.lora_"
    lora = {f"{name}{part}.weight": torch.randn(width, width, generator=generator) for part in ("up", "down")}
    hooks = comfy.hooks.create_hook_lora(lora, 0.0, 1.0)
    frames = comfy.hooks.HookKeyframeGroup()
    for i, strength in enumerate(strengths):
        frames.add(comfy.hooks.HookKeyframe(strength, start_percent=i / len(strengths)))
    hooks.set_keyframes_on_hooks(frames)
    return nodes_hooks.SetClipHooks().apply_hooks(parts.clip, scheduled, True, hooks)[0]


def test_a_persona_follows_the_schedule_of_a_clips_hooks(parts):
    """In each range the words are those of the text encoder at that range's strength."""
    personas, asked = named(make_persona()), [700, 500]

    def contexts_of(clip):
        _, positive = apply(parts.model, clip, personas, PROMPT)
        return [extra[PLAN_KEY].contexts(asked).dynamic for _, extra in positive]

    with torch.inference_mode():
        scheduled = contexts_of(with_hooks(parts, 0.0, 0.5, 1.0))
        wanted = [contexts_of(with_hooks(parts, strength))[0] for strength in (0.0, 0.5, 1.0)]
        plain = contexts_of(parts.clip)[0]
    assert len(scheduled) == 3
    for ours, theirs in zip(scheduled, wanted, strict=True):
        assert torch.equal(ours.key, theirs.key) and torch.equal(ours.value, theirs.value)
    assert torch.allclose(scheduled[0].key, plain.key, atol=1e-5)
    assert (scheduled[1].key - plain.key).norm() > 0.01 * plain.key.norm()
    assert (scheduled[2].key - scheduled[1].key).norm() > 0.01 * plain.key.norm()


# --- conditionings that other nodes have worked on


def test_a_prompt_that_is_already_encoded_gets_the_personas(parts):
    """With the plain word it is what Apply would have encoded; what was set before stays."""
    _, positive = apply(parts.model, parts.clip, named(make_persona()), PROMPT)
    plain = encoded(parts, PROMPT.replace("S*", "face"))
    ranged = ConditioningSetTimestepRange().set_range(plain, 0.1, 1.0)[0]
    for given in (plain, ranged):
        _, carrying = apply(parts.model, parts.clip, named(make_persona()), PROMPT, given)
        assert [extra.get("start_percent") for _, extra in carrying] == [e.get("start_percent") for _, e in given]
        assert all(PLAN_KEY not in extra for _, extra in given), "what came in is left as it was"
        for ours, theirs in zip(spoken_at(parts, carrying), spoken_at(parts, positive), strict=True):
            assert torch.equal(ours, theirs)


def spoken_at(parts, positive, timestep=600):
    """Key, value and plain contexts the conditional row has at a timestep."""
    model = install(parts.model, PersonaSystem())
    seen = []

    def look(n, context, value, extra):
        if extra["block"] == ("input", 1):
            seen.append((context[extra["cond_or_uncond"].index(0)], value[extra["cond_or_uncond"].index(0)]))
        return n, context, value

    model.set_model_attn2_patch(look)
    run(model, positive, parts.negative, table(parts)[[timestep, timestep - 100]])
    return seen[0]


def encoded(parts, text):
    return parts.clip.encode_from_tokens_scheduled(parts.clip.tokenize(text))


def test_a_concatenated_prompt_stays_beside_the_persona(parts):
    positive, other = apply(parts.model, parts.clip, named(make_persona()), PROMPT)[1], encoded(parts, "a red car")
    alone = spoken_at(parts, positive)
    joined = spoken_at(parts, ConditioningConcat().concat(positive, other)[0])
    for one, both in zip(alone, joined, strict=True):
        assert both.shape[0] == 154
        torch.testing.assert_close(both[:77], one)
        torch.testing.assert_close(both[77:], other[0][0][0].to(both))


def test_photomakers_prompt_joins_a_persona(parts):
    """The host's own encoding node and its fusion with random weights: the picture has both."""

    class Encoder(torch.nn.Module):
        load_device = torch.device("cpu")

        def __init__(self):
            super().__init__()
            torch.manual_seed(5)
            self.vision = torch.nn.Linear(3 * 224 * 224, tiny.CONTEXT_WIDTH)
            self.fuse = nodes_photomaker.FuseModule(tiny.CONTEXT_WIDTH, comfy.ops.disable_weight_init)
            for name, weight in self.fuse.named_parameters():
                torch.nn.init.normal_(weight, 1.0 if "norm" in name and "weight" in name else 0.0, 0.1)

        def forward(self, id_pixel_values, prompt_embeds, class_tokens_mask):
            seen = self.vision(id_pixel_values.flatten(2))[:, :, None]
            return self.fuse(prompt_embeds.clone(), seen, class_tokens_mask)

    with torch.inference_mode():
        image = torch.rand(1, 64, 64, 3, generator=torch.Generator().manual_seed(6))
        made = nodes_photomaker.PhotoMakerEncode.execute(Encoder(), image, parts.clip, "a photo of photomaker")
    other = made.result[0]
    positive = apply(parts.model, parts.clip, named(make_persona()), PROMPT)[1]
    key, value = spoken_at(parts, ConditioningConcat().concat(positive, other)[0])
    torch.testing.assert_close(key[:77], spoken_at(parts, positive)[0])
    torch.testing.assert_close(value[77:], other[0][0][0].to(value))


@pytest.mark.parametrize("strength", [1.0, 0.5, 0.0])
def test_a_multiplied_conditioning_multiplies_the_persona(parts, strength):
    positive = apply(parts.model, parts.clip, named(make_persona()), PROMPT)[1]
    alone = spoken_at(parts, positive)
    changed = spoken_at(parts, [[positive[0][0] * strength, positive[0][1]]])
    for one, other in zip(alone, changed, strict=True):
        torch.testing.assert_close(other, one * strength, rtol=1e-4, atol=1e-4)


def test_an_averaged_conditioning_keeps_the_other_text(parts):
    """The plain words cannot be told from the other text: the persona speaks at nearly full weight."""
    positive, other = apply(parts.model, parts.clip, named(make_persona()), PROMPT)[1], encoded(parts, "a red car")
    averaged = ConditioningAverage().addWeighted(positive, other, 0.5)[0]
    plain, mixed = (entry[0][0][0] for entry in (positive, averaged))
    for alone, both in zip(spoken_at(parts, positive), spoken_at(parts, averaged), strict=True):
        persona, added = alone - plain, both - mixed
        assert torch.nn.functional.cosine_similarity(added.flatten(), persona.flatten(), dim=0) > 0.999
        assert 0.5 < added.norm() / persona.norm() < 1.001


# --- errors, other patches, ends of runs


@pytest.mark.parametrize("prompt", ["a photo of a man", "S* and S*"])
def test_placeholder_errors(parts, prompt):
    with pytest.raises(LikenessError, match="exactly once"):
        apply(parts.model, parts.clip, named(make_persona()), prompt)


def test_other_base_model(parts):
    wrong = replace(make_persona(), mapper=Mapper(MapperConfig((768,)), torch.randn(768)))
    with pytest.raises(LikenessError, match="768"):
        apply(parts.model, parts.clip, named(wrong), PROMPT)
    assert text_widths(parts.clip) == (tiny.CONTEXT_WIDTH,)


@pytest.mark.parametrize("name", ["", "(S*)", "a:b"])
def test_bad_placeholder(name):
    with pytest.raises(LikenessError):
        join(None, NamedPersona(name, make_persona()), "Persona Load: placeholder")
    with pytest.raises(LikenessError):
        join(named(make_persona()), NamedPersona("S*", make_persona()), "Persona Load: placeholder")


@pytest.mark.parametrize("first", [True, False])
def test_foreign_patch_keeps_working(parts, first):
    """Another pack's cross-attention patch, put on before or after ours, is called and acts."""
    calls = []

    def foreign(n, context, value, extra):
        calls.append(value)
        return n, context, value * 1.1

    def add(model):
        model = model.clone()
        model.set_model_attn2_patch(foreign)
        return model

    base = add(parts.model) if first else parts.model
    model, positive = apply(base, parts.clip, named(make_persona()), PROMPT)
    model = model if first else add(model)
    sigmas = table(parts)[[700, 500]]
    patched = run(model, positive, parts.negative, sigmas)
    assert calls and calls[0].shape[0] == 2
    assert not torch.equal(
        patched, run(apply(parts.model, parts.clip, named(make_persona()), PROMPT)[0], positive, parts.negative, sigmas)
    )
    base_only = run(add(parts.model), positive, parts.negative, sigmas)
    assert not torch.equal(patched, base_only)


@pytest.mark.parametrize("first", [True, False])
def test_image_prompts_in_the_cross_attention(parts, first):
    """A replace of every cross-attention that adds attention to picture tokens, as IP-Adapter packs set it."""
    picture = torch.randn(1, 4, tiny.CONTEXT_WIDTH, generator=torch.Generator().manual_seed(3))

    def add(model, weight):
        def replace(q, k, v, extra):
            seen = torch.nn.functional.pad(picture, (0, k.shape[-1] - picture.shape[-1])).to(k).expand(len(q), -1, -1)
            image = optimized_attention(q, seen, seen, extra["n_heads"])
            return optimized_attention(q, k, v, extra["n_heads"]) + weight * image

        model = model.clone()
        for block in [("input", 1), ("input", 2), ("middle", 0), ("output", 3), ("output", 5)]:
            model.set_model_attn2_replace(replace, *block)
        return model

    def together(weight):
        base = add(parts.model, weight) if first else parts.model
        model, positive = apply(base, parts.clip, named(make_persona()), PROMPT)
        return run(model if first else add(model, weight), positive, parts.negative, table(parts)[[700, 500]])

    model, positive = apply(parts.model, parts.clip, named(make_persona()), PROMPT)
    alone = run(model, positive, parts.negative, table(parts)[[700, 500]])
    assert torch.equal(together(0.0), alone)
    assert (together(1.0) - alone).norm() > 1e-3 * alone.norm()


def test_interrupt_leaves_nothing_behind(parts):
    model, positive = apply(parts.model, parts.clip, named(make_persona()), PROMPT)
    sigmas = ddim_sigmas(parts, 4)
    whole = run(model, positive, parts.negative, sigmas)

    def stop(step, *_):
        if step == 2:
            raise comfy.model_management.InterruptProcessingException

    with pytest.raises(comfy.model_management.InterruptProcessingException):
        run(model, positive, parts.negative, sigmas, callback=stop)
    assert KEY not in model.model_options.get("transformer_options", {})
    assert torch.equal(whole, run(model, positive, parts.negative, sigmas))


def test_steps_above_the_stage_do_not_change_with_the_schedule_length(parts):
    assert timesteps_of(table(parts)[[401, 800]], sigma_table(1 / (1 + table(parts) ** 2))) == [401, 800]
