"""MagicFace in ComfyUI: what it changes, what it leaves alone, and that nothing stays behind."""

from __future__ import annotations

import gc
import weakref

import comfy.model_management
import comfy.sampler_helpers
import comfy.samplers
import pytest
import torch
from support.comfy import tiny
from support.comfy.magicface import apply, box, chain, sample

from likeness.hosts.comfy.magicface import session as magicface

CLOSE = {"rtol": 1e-3, "atol": 1e-3}


@pytest.mark.parametrize("references", [None, chain("man", weight=0.0)], ids=["no references", "weight 0"])
def test_nothing_to_do_is_vanilla_bit_for_bit(parts, references):
    patched = apply(parts, references)
    assert torch.equal(sample(patched), sample(patched, model=parts.model))


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("weighting", ["additive", "multiplicative", "none"])
def test_references_change_the_picture(parts, alpha, weighting):
    patched = apply(parts, chain("man", mask=box()), alpha=alpha, weighting=weighting)
    out = sample(patched)
    assert torch.isfinite(out).all()
    assert (out - sample(patched, model=parts.model)).abs().max() > 1e-3


def test_cfg_one_samples_without_unconditional_rows(parts):
    patched = apply(parts, chain("man"), alpha=0.5)
    out = sample(patched, cfg=1.0)
    assert torch.isfinite(out).all()
    assert not torch.equal(out, sample(patched, model=parts.model, cfg=1.0))


def test_mask_of_ones_is_no_mask_and_half_is_not(parts):
    whole = sample(apply(parts, chain("man"), alpha=1.0))
    ones = sample(apply(parts, chain("man", mask=torch.ones(1, 37, 51)), alpha=1.0))
    half = sample(apply(parts, chain("man", mask=box(300, 200)), alpha=1.0))
    assert torch.equal(ones, whole)
    assert not torch.allclose(half, whole, **CLOSE)


@pytest.mark.parametrize("names", [("man",), ("man", "red tie"), ("man", "red tie", "red", "tie")])
def test_number_of_references(parts, names):
    patched = apply(parts, chain(*names, mask=box()), alpha=0.34)
    out = sample(patched)
    assert torch.isfinite(out).all()
    assert not torch.equal(out, sample(patched, model=parts.model))


def test_each_picture_of_a_batch_is_what_it_is_alone(parts):
    patched = apply(parts, chain("man", "red tie", mask=box()), alpha=0.34)
    both = sample(patched, batch=2)
    alone = [sample(patched, seed=seed) for seed in (0, 1)]
    torch.testing.assert_close(both, torch.cat(alone), **CLOSE)
    assert not torch.allclose(both[0], both[1], atol=1e-2)


@pytest.mark.parametrize("size", [(15, 17), (9, 24), (8, 8)])
def test_odd_and_wide_latents(parts, size):
    out = sample(apply(parts, chain("man", mask=box(90, 200)), alpha=0.34), size=size)
    assert out.shape[-2:] == size
    assert torch.isfinite(out).all()


def test_conditional_and_unconditional_split_equal_together(parts, monkeypatch):
    patched = apply(parts, chain("man", "red tie", mask=box()), alpha=0.34)
    together = sample(patched)
    monkeypatch.setattr(patched.model.model, "memory_required", lambda *_args, **_kwargs: 1e30)
    torch.testing.assert_close(sample(patched), together, **CLOSE)


def test_the_host_keeps_room_for_the_references_forward_and_keys(parts, monkeypatch):
    """Four references are two guided pictures' rows; their keys at one level are counted as further pictures."""
    shapes = []
    prepare = comfy.sampler_helpers._prepare_sampling

    def spy(model, shape, *args, **kwargs):
        shapes.append(list(shape))
        return prepare(model, shape, *args, **kwargs)

    monkeypatch.setattr(comfy.sampler_helpers, "_prepare_sampling", spy)
    monkeypatch.setattr(parts.model.model, "memory_required", lambda shape, *_, **__: 2**18 * shape[0])
    sample(apply(parts, chain("man", "red tie", "red", "tie"), prompt="a man with a red tie, red, tie"), steps=1)
    tokens = 3 * 8 * 8 * 64 + 3 * 16 * 16 * 32  # of the two finest decoder levels, times their widths
    assert shapes == [[2 + -(-4 * 2 * tokens * 4 // 2**18), 4, 16, 16]]


@pytest.mark.parametrize("sampler", ["heun", "dpmpp_2s_ancestral", "dpmpp_2m", "uni_pc", "euler_ancestral_cfg_pp"])
def test_samplers_that_call_twice_or_between_the_levels(parts, sampler):
    patched = apply(parts, chain("man", mask=box()), alpha=0.5)
    out = sample(patched, sampler=sampler, steps=4)
    assert torch.isfinite(out).all()
    assert not torch.equal(out, sample(patched, model=parts.model, sampler=sampler, steps=4))


def test_a_guider_with_its_own_order_of_conditionings(parts):
    from comfy_extras.nodes_custom_sampler import Guider_DualCFG

    patched = apply(parts, chain("man", mask=box()), alpha=0.5)
    guider = Guider_DualCFG(patched.model)
    guider.set_conds(patched.positive, parts.negative, parts.negative)
    guider.set_cfg(5.0, 1.5)  # middle and negative are the same, so the second scale has no effect
    sigmas = comfy.samplers.calculate_sigmas(patched.model.get_model_object("model_sampling"), "normal", 3)
    noise = tiny.noise()
    with torch.inference_mode():
        sampler = comfy.samplers.sampler_object("euler")
        out = guider.sample(noise, torch.zeros_like(noise), sampler, sigmas, disable_pbar=True, seed=0)
    torch.testing.assert_close(out.clone(), sample(patched), **CLOSE)


def test_area_and_combined_conditionings_sample(parts):
    patched = apply(parts, chain("man", mask=box()), alpha=0.34)
    ((context, extra),) = patched.positive
    left = [context, {**extra, "area": (16, 8, 0, 0)}]
    right = [context, {**extra, "area": (16, 8, 0, 8)}]
    out = sample(patched, positive=[left, right, [context, extra]], batch=2)
    assert torch.isfinite(out).all()
    assert not torch.equal(out, sample(patched, positive=[left, right, [context, extra]], batch=2, model=parts.model))


def test_two_runs_in_a_row_and_the_cache(parts, monkeypatch):
    references = chain("man", mask=box())
    patched = apply(parts, references, alpha=0.5)
    forwards = []
    capture = magicface.MagicFaceSession.capture
    monkeypatch.setattr(magicface.MagicFaceSession, "capture", lambda *args: (forwards.append(1), capture(*args))[1])
    first = sample(patched)
    reads = len(forwards)
    assert reads == 3
    assert torch.equal(sample(patched), first)
    sample(apply(parts, references, prompt="a man on the beach", alpha=0.5), seed=7)
    assert len(forwards) == reads  # neither the second run nor another prompt and seed read the references again


def test_without_a_cache_the_picture_is_the_same(parts):
    kept = sample(apply(parts, chain("man", mask=box()), alpha=0.5))
    unkept = apply(parts, chain("man", mask=box()), alpha=0.5, cache_device_mb=0, cache_host_mb=0)
    assert torch.equal(sample(unkept), kept)
    assert torch.equal(sample(unkept), kept)


def test_a_lora_makes_the_cache_read_anew(parts):
    references = chain("man")
    key = "diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q.weight"
    loaded = parts.model.clone()
    loaded.add_patches({key: ("diff", (torch.ones(64 if "input_blocks.4" in key else 32, 32) * 0.1,))})
    keys = [references.weights_key(comfy.samplers.CFGGuider(model)) for model in (parts.model, loaded, parts.model)]
    assert keys[0] == keys[2] != keys[1]


def test_an_interrupt_leaves_nothing_behind(parts, monkeypatch):
    patched = apply(parts, chain("man", mask=box()), alpha=0.34)
    expected, vanilla = sample(patched), sample(patched, model=parts.model)
    sessions = _watch_sessions(monkeypatch)

    def interrupt(step, *_args):
        if step == 1:
            raise comfy.model_management.InterruptProcessingException

    with pytest.raises(comfy.model_management.InterruptProcessingException):
        sample(patched, callback=interrupt)
    _assert_gone(sessions)
    assert magicface.MagicFacePatch.key not in patched.model.model_options["transformer_options"]
    assert "patches_replace" not in patched.model.model_options["transformer_options"]
    assert torch.equal(sample(patched, model=parts.model), vanilla)
    assert torch.equal(sample(patched), expected)


def test_an_error_inside_the_unet_is_the_one_reported(parts, monkeypatch):
    patched = apply(parts, chain("man"), alpha=0.34)
    sessions = _watch_sessions(monkeypatch)
    broken = patched.model.clone()

    def fail(*_args):
        raise ZeroDivisionError("the first error")

    broken.set_model_attn1_output_patch(fail)
    with pytest.raises(ZeroDivisionError, match="the first error"):
        sample(patched, model=broken)
    _assert_gone(sessions)


def _watch_sessions(monkeypatch) -> list[weakref.ref]:
    made: list[weakref.ref] = []
    start = magicface.MagicFaceSession.__init__

    def watched(self, *args):
        start(self, *args)
        made.append(weakref.ref(self))

    monkeypatch.setattr(magicface.MagicFaceSession, "__init__", watched)
    return made


def _assert_gone(sessions: list[weakref.ref]) -> None:
    gc.collect()
    assert sessions
    assert all(session() is None for session in sessions)


def test_the_later_of_two_applications_holds(parts):
    first = apply(parts, chain("man", mask=box()), alpha=1.0)
    second = apply(parts, chain("red tie"), alpha=1.0)
    onto = apply(parts, chain("red tie"), model=first.model, alpha=1.0)
    assert torch.equal(sample(onto), sample(second))


def test_regional_guidance_changes_only_the_guidance(parts):
    plain = apply(parts, chain("man", mask=box()), alpha=0.34)
    regional = apply(parts, chain("man", mask=box()), alpha=0.34, s_cfg=True)
    out = sample(regional)
    assert torch.isfinite(out).all()
    assert not torch.allclose(out, sample(plain), **CLOSE)
    seen = []
    model = regional.model.clone()
    model.set_model_sampler_post_cfg_function(lambda args: (seen.append(1), args["denoised"])[1])
    assert torch.equal(sample(regional, model=model), out)
    assert len(seen) == 3
    assert torch.equal(sample(regional, cfg=1.0), sample(plain, cfg=1.0))
