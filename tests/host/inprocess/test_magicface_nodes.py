"""MagicFace's nodes: what they accept and refuse, other model structures, prompts, and previews."""

from __future__ import annotations

import pytest
import torch
from likeness_pack.nodes.magicface_nodes import (
    NODES,
    MagicFaceApply,
    MagicFaceOptions,
    MagicFacePreview,
    MagicFaceReference,
)
from support.comfy import tiny
from support.comfy.magicface import PROMPT, apply, box, chain, picture, sample

from likeness.core.errors import LikenessError
from likeness.hosts.comfy.magicface import previews
from likeness.hosts.comfy.magicface.apply import ApplyOptions, parse_points
from likeness.hosts.comfy.text import assign_tokens, encode, find_phrase
from likeness.hosts.comfy.unet import native_side, read_unet

# -- schema ----------------------------------------------------------------------------------------------------------


def test_every_input_and_output_is_explained():
    for node in NODES:
        schema = node.define_schema()
        schema.validate()
        assert schema.node_id.startswith("LikenessMagicFace")
        assert all(item.tooltip for item in (*schema.inputs, *schema.outputs)), schema.node_id
        numbers = [item for item in schema.inputs if item.io_type in ("INT", "FLOAT")]
        assert all(None not in (item.min, item.max, item.step) for item in numbers), schema.node_id


def test_faces_are_short_and_options_stand_apart():
    inputs = {node.__name__: node.define_schema().inputs for node in NODES}
    assert all(len(given) <= 8 for name, given in inputs.items() if name != "MagicFaceOptions")
    defaults = {item.id: item.default for item in inputs["MagicFaceOptions"]}
    assert MagicFaceOptions.execute(**defaults).result[0] == ApplyOptions(), "unconnected is what the node shows"


# -- references ------------------------------------------------------------------------------------------------------


def test_references_chain_and_keep_their_order():
    first = MagicFaceReference.execute(picture(0), "man", 3.0, mask=box()).result[0]
    both = MagicFaceReference.execute(picture(1, 96, 160), " red   tie ", 2.0, mask=box(33, 21), references=first)
    assert [item.name for item in both.result[0].concepts] == ["man", "red tie"]
    assert both.result[0].concepts[1].masks.shape == (1, 1, 96, 160)
    assert both.ui is None
    assert [item.name for item in first.concepts] == ["man"]


def test_without_a_mask_the_node_says_so():
    assert "whole picture" in MagicFaceReference.execute(picture(), "man", 3.0).ui.value


def test_the_mask_of_a_loaded_picture_without_one_is_none():
    nothing = torch.zeros(1, 64, 64)  # as Load Image hands on
    given = MagicFaceReference.execute(picture(), "man", 3.0, mask=nothing, region=nothing)
    (concept,) = given.result[0].concepts
    assert concept.masks is None and concept.region is None
    assert "whole picture" in given.ui.value


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mask": torch.zeros(1, 32, 64)}, "empty mask"),
        ({"mask": torch.full((1, 64, 64), torch.nan)}, "NaN"),
        ({"mask": torch.ones(2, 2, 64, 64)}, "one channel"),
        ({"concept": "  "}, "no word"),
        ({"image": torch.full((1, 64, 64, 3), torch.nan)}, "NaN"),
        ({"region": torch.zeros(1, 32, 64)}, "region.*empty mask"),
        ({"mask": torch.zeros(0, 64, 64)}, "mask: got an empty batch"),
        ({"region": torch.zeros(0, 64, 64)}, "region: got an empty batch"),
        ({"image": torch.zeros(0, 64, 64, 3)}, "image: got an empty batch"),
    ],
)
def test_bad_references_are_refused(arguments, message):
    with pytest.raises(LikenessError, match=message) as error:
        MagicFaceReference.execute(**{"image": picture(), "concept": "man", "weight": 3.0, **arguments})
    assert "MagicFace Reference" in str(error.value)


def test_several_views_of_one_concept_share_its_region(parts):
    views = torch.cat([picture(0), picture(1)])
    references = MagicFaceReference.execute(views, "man", 3.0, mask=box()).result[0]
    patched = apply(parts, references, alpha=0.34)
    out = sample(patched)
    assert torch.isfinite(out).all()
    assert not torch.equal(out, sample(apply(parts, chain("man", mask=box()), alpha=0.34)))
    assert patched.record.names == ("man", "man")
    assert patched.record.concepts == ("man",)


def test_a_region_of_the_whole_picture_is_rsa_to_the_end(parts):
    """Through the node, at another size than the picture: with alpha 0 it is what alpha 1 is without it."""
    given = MagicFaceReference.execute(picture(0), "man", 3.0, mask=box(), region=torch.ones(2, 40, 30)).result[0]
    placed = sample(apply(parts, given, alpha=0.0))
    torch.testing.assert_close(placed, sample(apply(parts, chain("man", mask=box()), alpha=1.0)), rtol=1e-3, atol=1e-3)


# -- apply -----------------------------------------------------------------------------------------------------------


def run_apply(parts, references=None, prompt="a man with a red tie", **more):
    given = {"model": parts.model, "clip": parts.clip, "vae": parts.vae, **more}
    return MagicFaceApply.execute(**given, prompt=prompt, alpha=0.4, references=references)


def test_a_positive_is_passed_on_as_it_is(parts):
    """Encoded elsewhere: the sampler gets that; the words are found in the prompt all the same."""
    references = chain("man", mask=box())
    own = apply(parts, references, alpha=0.0)
    given = [[context, {**extra, "strength": 0.7}] for context, extra in encode(parts.clip, PROMPT).conditioning]
    made = apply(parts, references, alpha=0.0, positive=given)
    assert made.positive is given
    torch.testing.assert_close(sample(made), sample(own), rtol=1e-3, atol=1e-3)
    assert run_apply(parts, positive=given).result[1] is given


def test_apply_without_references_returns_the_model_itself(parts):
    assert run_apply(parts).result[0] is parts.model


def test_a_word_missing_from_the_prompt_is_named(parts):
    with pytest.raises(LikenessError, match=r"MagicFace Apply: prompt.*'hat' does not occur"):
        run_apply(parts, chain("hat"))


def test_a_model_without_a_unet_is_refused(parts):
    model = parts.model.clone()
    model.add_object_patch("diffusion_model", torch.nn.Linear(1, 1))
    with pytest.raises(LikenessError, match=r"MagicFace Apply: model: got a model without a UNet.*SD1.x"):
        run_apply(parts, chain("man"), model=model)


def test_text_of_another_base_model_is_refused(parts):
    with pytest.raises(LikenessError, match="MagicFace Apply: clip: got text of 64 channels"):
        run_apply(parts, chain("man"), clip=wide_clip())


def wide_clip():
    from transformers import CLIPTextConfig, CLIPTextModel

    from likeness.hosts.comfy.miniature import models as miniature

    config = {**tiny.TEXT, "hidden_size": 64, "projection_dim": 64}
    return miniature.clip_from_text_encoder(config, CLIPTextModel(CLIPTextConfig(**config)).state_dict())


def test_a_vae_of_another_base_model_is_refused(parts):
    class Flux:
        def encode(self, pixels):
            return torch.zeros(pixels.shape[0], 16, pixels.shape[1] // 8, pixels.shape[2] // 8)

    with pytest.raises(LikenessError, match="MagicFace Apply: vae"):
        run_apply(parts, chain("man"), vae=Flux())


@pytest.mark.parametrize("layers", ["up9", "12-40", "-1", "finest"])
def test_wrong_layers_are_told_before_sampling(parts, layers):
    with pytest.raises(LikenessError, match="MagicFace: layers"):
        run_apply(parts, chain("man"), options=ApplyOptions(layers=layers))


@pytest.mark.parametrize("layers", ["all", "decoder", "mid, up1", "0-3", "15"])
def test_layers_are_the_users_choice(parts, layers):
    out = sample(apply(parts, chain("man", mask=box()), alpha=0.34, layers=layers))
    assert torch.isfinite(out).all()
    assert not torch.equal(out, sample(apply(parts, chain("man", mask=box()), alpha=0.34)))


def test_a_latent_with_nan_is_refused_when_sampling(parts):
    patched = apply(parts, chain("man"))
    with pytest.raises(LikenessError, match=r"MagicFace .*latent_image: got NaN"):
        sample(patched, latent=torch.full((1, 4, 16, 16), torch.nan))


def test_a_model_on_several_gpus_is_refused_when_sampling(parts):
    patched = apply(parts, chain("man"))
    model = patched.model.clone()
    model.model_options["transformer_options"]["multigpu_thread_device"] = "cuda:1"
    with pytest.raises(LikenessError, match="spread over several GPUs"):
        sample(patched, model=model)


def test_points():
    assert parse_points(" 0.5, 0.25; 1,0 ;") == ((0.25, 0.5), (0.0, 1.0))
    assert parse_points("") == ()
    for wrong in ("0.5", "0.5, 2", "a, b", "0.1, 0.2, 0.3"):
        with pytest.raises(LikenessError, match="record_points"):
            parse_points(wrong)


# -- structures ------------------------------------------------------------------------------------------------------


def test_layout_of_sd15(parts):
    blocks = read_unet(parts.model, "test")
    assert len(blocks.layout.blocks) == 16
    assert blocks.layout.levels == ("down0", "down1", "down2", "mid", "up1", "up2", "up3")
    chosen = [blocks.address[block] for block in blocks.layout.finest_decoder_levels()]
    assert chosen == [("output", i, 0) for i in range(6, 12)]
    assert native_side(parts.model) == 128


def sdxl():
    """SDXL's structure (no attention in the finest level, several blocks per transformer, a size vector), narrow."""
    import comfy.model_patcher
    import comfy.supported_models

    config = comfy.supported_models.SDXL(
        {
            "image_size": 32, "in_channels": 4, "out_channels": 4, "use_spatial_transformer": True, "legacy": False,
            "num_classes": "sequential", "adm_in_channels": 1280 + 6 * 256, "model_channels": 32,
            "channel_mult": [1, 2, 2], "num_res_blocks": [2, 2, 2], "transformer_depth": [0, 0, 1, 1, 2, 2],
            "transformer_depth_middle": 2, "transformer_depth_output": [0, 0, 0, 1, 1, 1, 2, 2, 2],
            "use_linear_in_transformer": True, "context_dim": tiny.CONTEXT_WIDTH, "use_checkpoint": False,
            "num_heads": -1, "num_head_channels": 32, "use_temporal_attention": False, "use_temporal_resblock": False,
        }
    )  # fmt: skip
    config.unet_config |= {"num_heads": -1, "num_head_channels": 32}
    config.set_inference_dtype(torch.float32, None)
    model = config.get_model({}, "")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in model.diffusion_model.named_parameters():
            scale = weight.shape[1:].numel() ** -0.5 if weight.ndim > 1 else 0.0
            offset = float(weight.ndim == 1 and name.endswith("weight"))
            weight.copy_(torch.randn(weight.shape, generator=generator) * scale + offset)
    device = torch.device("cpu")
    return comfy.model_patcher.ModelPatcher(model.eval(), load_device=device, offload_device=device)


class PooledClip:
    """A CLIP that also gives a pooled embedding, as SDXL's do."""

    def __init__(self, clip):
        self.clip = clip
        self.tokenizer = clip.tokenizer

    def tokenize(self, *args, **kwargs):
        return self.clip.tokenize(*args, **kwargs)

    def encode_from_tokens_scheduled(self, tokens):
        ((context, _extra),) = self.clip.encode_from_tokens_scheduled(tokens)
        return [[context, {"pooled_output": context.mean(dim=(1, 2), keepdim=False)[:, None].expand(1, 1280)}]]


def test_sdxl_structure(parts):
    model, clip = sdxl(), PooledClip(parts.clip)
    blocks = read_unet(model, "test")
    assert blocks.layout.levels == ("down1", "down2", "mid", "up0", "up1")
    assert blocks.address[blocks.layout.blocks[-1]] == ("output", 5, 0)
    assert native_side(model) == 1024
    model.set_attachments("likeness_native_side", 128)
    made = run_apply(parts, chain("man", mask=box()), model=model, clip=clip).result
    negative = encode(clip, "").conditioning
    out = tiny.sample(made[0], made[1], negative, size=(16, 24), batch=2)
    assert torch.isfinite(out).all()
    assert not torch.equal(out, tiny.sample(model, made[1], negative, size=(16, 24), batch=2))


def test_an_inpainting_model_gets_its_further_channels(parts):
    model = tiny.model(tiny.diffusers_unet(in_channels=9))
    assert model.model.concat_keys
    patched = apply(parts, chain("man", "red tie", mask=box()), model=model, alpha=0.34)
    out = sample(patched)
    assert torch.isfinite(out).all()
    assert not torch.equal(out, sample(patched, model=model))


def test_half_precision(parts, monkeypatch):
    import comfy.model_management as management

    monkeypatch.setattr(management, "unet_dtype", lambda **_options: torch.bfloat16)
    monkeypatch.setattr(management, "unet_manual_cast", lambda *_args, **_options: None)
    model = tiny.model()
    assert model.model_dtype() == torch.bfloat16
    for alpha in (1.0, 0.0):
        settings = {"alpha": alpha, "map_full_resolution": True}
        half = sample(apply(parts, chain("man", mask=box()), model=model, **settings), cfg=1.0, steps=2)
        full = sample(apply(parts, chain("man", mask=box()), **settings), cfg=1.0, steps=2)
        assert torch.isfinite(half).all()
        assert (half - full).abs().mean() < 0.1 * full.abs().mean()


# -- prompts ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompt", "phrase", "expected"),
    [
        ("a man with a red tie", "man", [(2,)]),
        ("a man with a red tie", "red tie", [(5, 6)]),
        ("a man with a red tie", "RED  TIE", [(5, 6)]),
        ("a (man:1.4) with a (red tie)", "red tie", [(5, 6)]),
        ("man, another man", "man", [(1,), (4,)]),
        ("a (man:1.4) with a tie", "(man)", [(2,)]),
        ("a man \\(young\\) at sea", "man (young)", [(2, 3, 4, 5)]),
    ],
)
def test_phrases_are_found(parts, prompt, phrase, expected):
    assert find_phrase(parts.clip, prompt, phrase, source="test") == expected


def test_a_word_is_not_found_inside_another(parts):
    for prompt in ("a womanman", "the mantelpiece", "a red tiebreak"):
        with pytest.raises(LikenessError):
            find_phrase(parts.clip, prompt, "man" if "man" in prompt else "red tie", source="test")


def test_a_word_in_the_second_window_of_a_long_prompt(parts):
    prompt = "very " * 90 + "nice man"
    ((position,),) = find_phrase(parts.clip, prompt, "man", source="test")
    assert 77 < position < 154
    assert encode(parts.clip, prompt).context.shape[1] == 154


def test_concepts_of_the_same_word_take_their_own_occurrence(parts):
    clip = parts.clip
    assert assign_tokens(clip, "man and man", ["man", "man"], source="test") == [(1,), (3,)]
    assert assign_tokens(clip, "man and man and man", ["man", "man"], source="test") == [(1,), (3, 5)]
    assert assign_tokens(clip, "a man", ["man", "Man"], source="test") == [(2,), (2,)]
    assert assign_tokens(clip, "man and man", ["man"], source="test") == [(1, 3)]


# -- previews --------------------------------------------------------------------------------------------------------


def test_preview_draws_what_a_run_recorded(parts):
    patched = apply(parts, chain("man", "red tie", mask=box()), alpha=0.34, record_points="0.5, 0.5; 0.1, 0.9")
    latent = sample(patched, batch=2)
    recorder = patched.record.find(latent)
    assert [step.stage for step in recorder.steps] == ["rsa", "rsa", "rba"]
    assert all(step.labels.shape[0] == 2 and int(step.labels.max()) <= 2 for step in recorder.steps)
    assert recorder.correspondence and len(recorder.patches_seen) == 2 * len(recorder.correspondence)
    maps, places, points = previews.draw(patched.record, latent, picture(5), columns=2)
    for image in (maps, places, points):
        assert image.dtype == torch.float32 and image.shape[-1] == 3 and 0 <= image.min() <= image.max() <= 1
        assert image.std() > 0.02
    assert maps.shape[0] == 1 and len(places) == len(recorder.correspondence)


def test_preview_finds_the_run_that_made_the_latent(parts):
    patched = apply(parts, chain("man", mask=box()), alpha=0.34)
    latents = [sample(patched, seed=seed) for seed in range(3)]
    recorders = [patched.record.find(latent) for latent in latents]
    assert len({id(recorder) for recorder in recorders}) == 3
    assert patched.record.find(latents[0] + 1) is recorders[-1]
    for seed in range(3, 9):
        sample(patched, seed=seed)
    assert len(patched.record.runs) == previews.KEPT_RUNS


def test_preview_without_a_record_says_so(parts):
    patched = apply(parts, chain("man"), record=False)
    latent = sample(patched)
    assert patched.record.runs == []
    images = previews.draw(patched.record, latent, None, columns=5)
    assert all(image.shape[-1] == 3 for image in images)


def test_recording_does_not_change_the_picture(parts):
    on, off = (apply(parts, chain("man", mask=box()), alpha=0.34, record=record) for record in (True, False))
    assert torch.equal(sample(on), sample(off))


def test_preview_node(parts, tmp_path, monkeypatch):
    import folder_paths

    monkeypatch.setattr(folder_paths, "temp_directory", str(tmp_path))
    patched = apply(parts, chain("man", mask=box()), alpha=0.34)
    latent = {"samples": sample(patched)}
    out = MagicFacePreview.execute(latent, patched.record, columns=3)
    assert len(out.result) == 3
    assert len(list(tmp_path.glob("*.png"))) == 1
    assert len(MagicFacePreview.execute(latent).result) == 3, "MagicFace Apply is bypassed"
