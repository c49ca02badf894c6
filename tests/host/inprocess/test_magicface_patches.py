"""MagicFace among other packs: their patches keep working on the picture, and never reach the reference pass."""

from __future__ import annotations

import dataclasses

import comfy.ldm.modules.attention as host_attention
import pytest
import torch
from support.comfy.magicface import apply, box, chain, sample

from likeness.hosts.comfy.magicface import session as magicface

CLOSE = {"rtol": 1e-3, "atol": 1e-3}
BLOCKS = [("input", 1), ("middle", 0), ("output", 5), ("output", 8), ("output", 11)]


class OtherReplace:
    """Another pack's replace, an object as IPAdapter_plus sets it: it may be extended by ``add`` while patching.

    ``strength`` shifts what it returns; with 0 it is the plain attention.
    """

    def __init__(self, strength: float = 0.0) -> None:
        self.strengths = [strength]
        self.calls = 0

    def __deepcopy__(self, _memo) -> OtherReplace:
        return self  # ComfyUI 0.8 copies a model's options deeply; the calls are to be counted here all the same

    def add(self, strength: float) -> None:
        self.strengths.append(strength)

    def __call__(self, q, k, v, extra_options):
        self.calls += 1
        out = host_attention.optimized_attention(q, k, v, extra_options["n_heads"], attn_precision=None)
        return out + sum(self.strengths)


def set_other(model, name: str, other: OtherReplace):
    """Set it in several blocks as IPAdapter_plus does: extend what is there, if anything is, else put it there."""
    options = model.model_options["transformer_options"] = model.model_options["transformer_options"].copy()
    replaces = options["patches_replace"] = dict(options.get("patches_replace", {}))
    table = replaces[name] = dict(replaces.get(name, {}))
    for key in BLOCKS:
        if key in table:
            table[key].add(*other.strengths)
        else:
            table[key] = other
    return model


@pytest.mark.parametrize("name", ["attn1", "attn2"])
@pytest.mark.parametrize("alpha", [1.0, 0.0])
def test_a_replace_works_set_before_or_after(parts, name, alpha):
    references = chain("man", mask=box())
    before, after = OtherReplace(0.2), OtherReplace(0.2)
    first = apply(parts, references, model=set_other(parts.model.clone(), name, before), alpha=alpha)
    last = apply(parts, references, alpha=alpha)
    out = sample(first)
    assert torch.equal(sample(last, model=set_other(last.model.clone(), name, after)), out)
    assert before.calls == after.calls == 3 * len(BLOCKS)  # every block in each of three steps, and no reference pass
    assert not torch.allclose(out, sample(last), **CLOSE)  # theirs has its effect
    assert not torch.allclose(out, sample(first, model=set_other(parts.model.clone(), name, before)), **CLOSE)


@pytest.mark.parametrize("alpha", [1.0, 0.0])
def test_a_replace_that_changes_nothing_changes_nothing(parts, alpha):
    patched = apply(parts, chain("man", mask=box()), alpha=alpha)
    other = set_other(patched.model.clone(), "attn1", OtherReplace())
    torch.testing.assert_close(sample(patched, model=other), sample(patched), **CLOSE)


class MaskedReplace(OtherReplace):
    """As IPAdapter_plus with an attention mask: the right half of the picture, in the conditional rows alone."""

    def __call__(self, q, k, v, extra_options):
        self.calls += 1
        out = host_attention.optimized_attention(q, k, v, extra_options["n_heads"], attn_precision=None)
        height, width = extra_options["original_shape"][2:4]
        factor = round((height * width / q.shape[1]) ** 0.5)
        mask = torch.zeros(height // factor, width // factor)
        mask[:, width // factor // 2 :] = sum(self.strengths)
        chunks = extra_options["cond_or_uncond"]
        rows = q.shape[0] // len(chunks)
        shares = torch.tensor([float(chunk == 0) for chunk in chunks for _ in range(rows)])
        return out + shares[:, None, None] * mask.flatten()[None, :, None]


@pytest.mark.parametrize("alpha", [1.0, 0.0])
def test_another_patchs_attention_mask_stays_in_its_place(parts, alpha):
    size = {"size": (16, 24)}
    ours = apply(parts, chain("man", mask=box()), alpha=alpha)
    silent = apply(parts, chain("man", mask=box(), weight=0.0), alpha=alpha)
    theirs = set_other(parts.model.clone(), "attn2", MaskedReplace(0.3))
    alone = sample(ours, model=theirs, **size)
    both_silent = set_other(silent.model.clone(), "attn2", MaskedReplace(0.3))
    assert torch.equal(sample(silent, model=both_silent, **size), alone)
    other = MaskedReplace(0.3)
    both = sample(ours, model=set_other(ours.model.clone(), "attn2", other), **size)
    assert other.calls == 3 * len(BLOCKS), "never in the reference pass"
    assert not torch.allclose(both, alone, **CLOSE) and not torch.allclose(both, sample(ours, **size), **CLOSE)
    right, left = ((both - sample(ours, **size)).abs()[..., half].mean() for half in (slice(12, 24), slice(0, 12)))
    assert right > left


def test_nothing_of_ours_sits_where_others_look(parts):
    patched = apply(parts, chain("man", mask=box()))
    sample(patched)
    options = patched.model.model_options["transformer_options"]
    assert "patches_replace" not in options
    model = set_other(patched.model.clone(), "attn2", other := OtherReplace(0.1))
    set_other(model, "attn2", OtherReplace(0.02))  # extends the one object in each of the blocks
    assert len(other.strengths) == 1 + len(BLOCKS)
    once = set_other(patched.model.clone(), "attn2", OtherReplace(0.1 + 0.02 * len(BLOCKS)))
    torch.testing.assert_close(sample(patched, model=model), sample(patched, model=once), **CLOSE)


def test_list_patches_and_the_function_wrapper_are_called(parts):
    patched = apply(parts, chain("man", mask=box()), alpha=0.5)
    expected = sample(patched)
    called = dict.fromkeys(("attn1_patch", "attn1_output_patch", "attn2_patch", "output_block_patch", "wrapper"), 0)

    def counting(name, result):
        def patch(*args):
            called[name] += 1
            return result(*args)

        return patch

    model = patched.model.clone()
    model.set_model_attn1_patch(counting("attn1_patch", lambda n, k, v, _extra: (n, k, v)))
    model.set_model_attn2_patch(counting("attn2_patch", lambda n, k, v, _extra: (n, k, v)))
    model.set_model_attn1_output_patch(counting("attn1_output_patch", lambda n, _extra: n))
    model.set_model_output_block_patch(counting("output_block_patch", lambda h, skip, _options: (h, skip)))
    wrap = counting("wrapper", lambda run, args: run(args["input"], args["timestep"], **args["c"]))
    model.set_model_unet_function_wrapper(wrap)
    assert torch.equal(sample(patched, model=model), expected)
    assert called == {
        "attn1_patch": 48,
        "attn2_patch": 48,
        "attn1_output_patch": 48,
        "output_block_patch": 36,
        "wrapper": 3,
    }  # 16 blocks, 12 output blocks and one call, in each of three steps: the reference pass has none of them


def test_keys_appended_by_another_patch_are_attended(parts):
    def append(n, k, v, _extra):
        return n, torch.cat([k, k[:, :7] * 2], dim=1), torch.cat([v, v[:, :7] + 1], dim=1)

    patched = apply(parts, chain("man", mask=box()), alpha=1.0)
    longer, longer_vanilla = patched.model.clone(), parts.model.clone()
    longer.set_model_attn1_patch(append)
    longer_vanilla.set_model_attn1_patch(append)
    out = sample(patched, model=longer)
    assert not torch.allclose(out, sample(patched), **CLOSE)
    assert not torch.allclose(out, sample(patched, model=longer_vanilla), **CLOSE)


def test_tiled_queries_switch_us_off_where_they_are_and_say_so(parts, caplog):
    def tile(n, k, v, _extra):
        rows, tokens, width = n.shape
        return n.reshape(rows * 2, tokens // 2, width), k.reshape(rows * 2, -1, width), v.reshape(rows * 2, -1, width)

    def untile(n, _extra):
        return n.reshape(n.shape[0] // 2, -1, n.shape[2])

    def tiled(model):
        model = model.clone()
        model.set_model_attn1_patch(tile)
        model.set_model_attn1_output_patch(untile)
        return model

    patched = apply(parts, chain("man", mask=box()), alpha=1.0)
    with caplog.at_level("WARNING", logger="likeness"):
        out = sample(patched, model=tiled(patched.model))
    assert torch.equal(out, sample(patched, model=tiled(parts.model)))
    assert "MagicFace leaves a pass alone in level up3" in caplog.text


class Control:
    """What the sampler needs of a ControlNet: residuals for some blocks, here a plain shift of the middle block."""

    def __init__(self, strength: float) -> None:
        self.strength = strength
        self.previous_controlnet = None
        self.extra_hooks = None
        self.multigpu_clones: dict = {}

    def get_control(self, x, *_args):
        shape = (x.shape[0], 64, x.shape[2] // 8, x.shape[3] // 8)
        return {"input": [], "middle": [torch.full(shape, self.strength)], "output": []}

    def get_models(self):
        return []

    def get_extra_hooks(self):
        return []

    def inference_memory_requirements(self, _dtype):
        return 0

    def pre_run(self, *_args):
        pass

    def cleanup(self):
        pass


def test_a_controlnet_reaches_the_picture_and_not_the_references(parts, monkeypatch):
    patched = apply(parts, chain("man", mask=box()), alpha=0.5)
    ((context, extra),) = patched.positive
    stored = {}
    store = magicface.Capture.store

    def keep(self, block, k, v):
        stored.setdefault((len(runs), block), []).append(k.clone())
        store(self, block, k, v)

    runs: list[torch.Tensor] = []
    monkeypatch.setattr(magicface.Capture, "store", keep)
    for strength in (0.0, 3.0):
        other = apply(parts, chain("man", mask=box()), alpha=0.5)
        positive = [[context, {**extra, "control": Control(strength), "control_apply_to_uncond": True}]]
        runs.append(sample(other, positive=positive))
    assert not torch.allclose(runs[0], runs[1], **CLOSE)
    without, controlled = ({b: k for (n, b), k in stored.items() if n == i} for i in (0, 1))
    assert without.keys() == controlled.keys() and without
    assert all(torch.equal(a, b) for block in without for a, b in zip(without[block], controlled[block], strict=True))


def test_perturbed_attention_of_the_host_itself(parts):
    from comfy_extras.nodes_pag import PerturbedAttentionGuidance

    patched = apply(parts, chain("man", mask=box()), alpha=0.34)
    guided = PerturbedAttentionGuidance.execute(patched.model, 3.0)[0]
    out = sample(patched, model=guided)
    assert torch.isfinite(out).all()
    assert not torch.allclose(out, sample(patched), **CLOSE)


def test_an_attention_override_is_used_for_the_rows_we_leave(parts):
    patched = apply(parts, chain("man", mask=box()), alpha=1.0)
    model, used = patched.model.clone(), []

    def override(function, *args, **kwargs):
        used.append(1)
        return function(*args, **kwargs)

    model.model_options["transformer_options"]["optimized_attention_override"] = override
    assert torch.equal(sample(patched, model=model), sample(patched))
    assert used


@pytest.mark.parametrize("order", [1, -1])
def test_maps_are_made_of_the_prompt_with_the_words(parts, order):
    """Another conditioning beside ours takes the references, but regions come from our prompt's words alone."""
    from likeness.hosts.comfy.text import encode

    patched = apply(parts, chain("man", mask=box()), alpha=0.0)
    other = encode(parts.clip, "the sea at night, waves, foam").conditioning
    alone = labels_of_first_step(patched, patched.positive)
    assert torch.equal(labels_of_first_step(patched, [*patched.positive, *other][::order]), alone)
    assert not torch.equal(labels_of_first_step(patched, other), alone)


def labels_of_first_step(patched, positive) -> torch.Tensor:
    latent = sample(patched, positive=positive)
    return patched.record.find(latent).steps[0].labels


def test_the_reference_pass_has_what_a_host_call_has_and_ids_of_its_own(parts):
    """A pack that patches the UNet's own forward (a reference ControlNet) reads the ids there, also in our pass."""
    patched = apply(parts, chain("man", "red tie", mask=box()), alpha=1.0)
    unet, seen = patched.model.model.diffusion_model, []
    forward = unet.forward

    def reading(x, *args, **kwargs):
        options = kwargs["transformer_options"]
        assert len(x) % len(options["cond_or_uncond"]) == 0 and len(options["uuids"]) == len(options["cond_or_uncond"])
        assert {"sigmas", "sample_sigmas"} <= options.keys()
        seen.append((len(x), tuple(options["uuids"])))
        return forward(x, *args, **kwargs)

    unet.forward = reading
    try:
        sample(patched, cfg=1.0)
    finally:
        del unet.forward
    pictures = {ids for rows, ids in seen if rows == 1}
    references = [ids for rows, ids in seen if rows == 2]
    assert len(pictures) == 1 and len(references) == 3
    assert len({uuid for ids in references for uuid in ids}) == 6, "fresh ones in each pass"


class ScheduledClip:
    """A CLIP whose hooks follow a schedule: the prompt encoded once for each range of the steps."""

    def __init__(self, clip):
        self.clip = clip
        self.tokenizer = clip.tokenizer

    def tokenize(self, *args, **kwargs):
        return self.clip.tokenize(*args, **kwargs)

    def encode_from_tokens_scheduled(self, tokens):
        ((context, extra),) = self.clip.encode_from_tokens_scheduled(tokens)
        first, later = {"start_percent": 0.0, "end_percent": 0.4}, {"start_percent": 0.4, "end_percent": 1.0}
        return [[context, {**extra, **first}], [context * 1.1, {**extra, **later}]]


def test_every_range_of_a_scheduled_prompt_makes_maps(parts):
    scheduled = dataclasses.replace(parts, clip=ScheduledClip(parts.clip))
    patched = apply(scheduled, chain("man", mask=box()), alpha=0.0)
    out = sample(patched, steps=6)
    assert all(step.labels is not None for step in patched.record.find(out).steps)
    assert torch.equal(sample(apply(scheduled, chain("man", mask=box()), alpha=0.0, record=False), steps=6), out)


@pytest.mark.parametrize("kind", ["CONST", "EDM", "V_PREDICTION"])
def test_references_are_noised_as_the_model_noises(parts, kind, monkeypatch):
    import comfy.model_sampling as sampling

    class Sampling(sampling.ModelSamplingDiscrete, getattr(sampling, kind)):
        pass

    patched = apply(parts, chain("man"), alpha=1.0)
    model = patched.model.clone()
    model.add_object_patch("model_sampling", Sampling(parts.model.model.model_config))
    noised, scale = [], Sampling.noise_scaling
    monkeypatch.setattr(Sampling, "noise_scaling", lambda *a, **k: (noised.append(a[2].shape[0]), scale(*a, **k))[1])
    assert sample(patched, model=model, batch=2).shape[0] == 2
    assert noised.count(1) == 3, "the reference, once a step; the picture's own two rows once"
