"""Checkpoint files under original key names and folders of diffusers' layout come back with equal outputs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import diffusers
import pytest
import torch
from safetensors.torch import save_file
from support import original_file
from support.persona_tiny import tiny_text, tiny_unet
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from likeness.core.errors import LikenessError
from likeness.core.magicface.request import MagicFaceRequest
from likeness.hosts.diffusers import checkpoints
from likeness.hosts.diffusers.checkpoints import SD1, SD2, SDXL, Family, load_checkpoint
from likeness.hosts.diffusers.persona import image_width, prepare_photo
from likeness.hosts.diffusers.tokenizer import load_tokenizer, tokenize
from likeness.training.persona.request import PersonaTraining
from likeness.training.persona.trainer import PersonaTrainer, train

PROMPT = "a photo of a cat in the snow"
CPU = torch.device("cpu")


def narrow(family: Family) -> Family:
    """The family's topology with few channels."""
    levels = len(family.unet["block_out_channels"])
    text = {"intermediate_size": 64, "num_hidden_layers": 3}
    wide = ("hidden_size", "projection_dim")
    texts = tuple({**told, **text, **dict.fromkeys(wide, 32 * (i + 1)), "num_attention_heads": 2 * (i + 1)}
                  for i, told in enumerate(family.texts))
    unet = {**family.unet, "block_out_channels": [32, 32, 64, 64][:levels], "attention_head_dim": 4,
            "cross_attention_dim": sum(told["hidden_size"] for told in texts)}
    if len(texts) == 2:
        unet |= {"addition_time_embed_dim": 8, "projection_class_embeddings_input_dim": 48 + 64,
                 "transformer_layers_per_block": [1, 1, 2]}
    return replace(family, unet=unet, vae={**family.vae, "block_out_channels": [32] * 4}, texts=texts)


def made(family: Family) -> SimpleNamespace:
    """Random models of a family."""
    torch.manual_seed(0)
    size = {"in_channels": 4, "out_channels": 4, "layers_per_block": 2}
    unet = diffusers.UNet2DConditionModel(sample_size=family.side // 8, **size, **family.unet).eval()
    vae = diffusers.AutoencoderKL(**family.vae).eval()
    kinds = (CLIPTextModel, CLIPTextModelWithProjection)
    texts = [kind(CLIPTextConfig(**told)).eval() for kind, told in zip(kinds, family.texts, strict=False)]
    return SimpleNamespace(unet=unet, vae=vae, texts=texts, factor=family.vae.get("scaling_factor", 0.18215))


def encoders(family: Family, models: SimpleNamespace) -> dict:
    if family.name == "sd1":
        return {"cond_stage_model": original_file.clip(models.texts[0])}
    if family.name == "sd2":
        return {"cond_stage_model.model": original_file.open_clip(models.texts[0])}
    return {"conditioner.embedders.0": original_file.clip(models.texts[0]),
            "conditioner.embedders.1.model": original_file.open_clip(models.texts[1])}


@pytest.fixture
def families(monkeypatch: pytest.MonkeyPatch) -> dict[str, Family]:
    found = {family.name: narrow(family) for family in (SD1, SD2, SDXL)}
    monkeypatch.setattr(checkpoints, "FAMILIES", tuple(found.values()))
    return found


def written(path: Path, family: Family, models: SimpleNamespace, **more) -> Path:
    original_file.write(path, models.unet, models.vae, encoders(family, models), **more)
    return path


def expected_text(models: SimpleNamespace) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """What diffusers conditions the UNet on."""
    if len(models.texts) == 1:
        return models.texts[0](input_ids=tokenize([PROMPT])).last_hidden_state, {}
    ids = tokenize([PROMPT])
    first = models.texts[0](input_ids=ids, output_hidden_states=True)
    end = int((ids[0] == checkpoints.EOS).nonzero()[0])
    other = ids.clone()
    other[:, end + 1 :] = 0
    second = models.texts[1](input_ids=other, output_hidden_states=True)
    context = torch.cat([first.hidden_states[-2], second.hidden_states[-2]], dim=-1)
    return context, {"text_embeds": second.text_embeds, "time_ids": torch.tensor([[64.0, 96, 0, 0, 64, 96]])}


@torch.no_grad()
def assert_same(loaded, models: SimpleNamespace) -> None:
    context, added = expected_text(models)
    got = loaded.conditioning([PROMPT], (64, 96))
    torch.testing.assert_close(got.context, context, atol=1e-5, rtol=1e-5)
    assert set(got.added) == set(added)
    for name, value in added.items():
        torch.testing.assert_close(got.added[name], value, atol=1e-5, rtol=1e-5)
    latent = torch.randn(1, 4, 8, 12)
    forward = {"encoder_hidden_states": context, "added_cond_kwargs": added or None}
    torch.testing.assert_close(loaded.unet(latent, 5, **forward).sample, models.unet(latent, 5, **forward).sample)
    picture = (models.vae.decode(latent / models.factor).sample / 2 + 0.5).clamp(0, 1)
    torch.testing.assert_close(loaded.decode(latent), picture, atol=1e-5, rtol=1e-4)
    pixels = torch.rand(1, 3, 64, 64)
    mean = models.vae.encode(pixels * 2 - 1).latent_dist.mean * models.factor
    torch.testing.assert_close(loaded.encode(pixels), mean, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["sd1", "sd2", "sdxl"])
def test_a_file_under_original_names(tmp_path: Path, families: dict[str, Family], name: str) -> None:
    models = made(families[name])
    if name == "sd2":  # by the spread of this weight a v-prediction model of SD2.x is told
        with torch.no_grad():
            models.unet.up_blocks[3].attentions[2].transformer_blocks[0].norm1.bias.normal_(std=0.3)
    loaded = load_checkpoint(written(tmp_path / "narrow.safetensors", families[name], models), CPU)
    assert_same(loaded, models)
    assert loaded.prediction == ("v_prediction" if name == "sd2" else "epsilon")
    assert (loaded.side, loaded.name, loaded.base["family"]) == (families[name].side, "narrow", name)
    picture = loaded.generate(PROMPT, [1], steps=2, width=96, height=64)
    assert picture.shape == (1, 3, 64, 96) and torch.isfinite(picture).all()


@pytest.mark.parametrize("name", ["sd2", "sdxl"])
def test_a_persona_is_learnt_and_drawn_beside_magicface(tmp_path: Path, families: dict[str, Family], name: str) -> None:
    family = families[name]
    path = written(tmp_path / "a.safetensors", family, made(family), metadata={"modelspec.prediction_type": "v"})
    pipeline = load_checkpoint(path, CPU)
    picture = torch.rand(3, 64, 64)
    photo = prepare_photo(pipeline, picture, torch.ones(64, 64), 64)
    request = PersonaTraining(steps=2, image_width=image_width(photo))
    trainer = PersonaTrainer(request, pipeline, [photo])
    persona = train(trainer)
    assert all(map(torch.isfinite, map(torch.tensor, trainer.history)))
    assert persona.base["family"] == name
    plain, prompt = "a photo of a face in the snow", "a photo of a S* in the snow"
    magicface = MagicFaceRequest((pipeline.reference(picture, "face", plain),))
    taller = pipeline.reference(torch.rand(3, 128, 64), "face", plain)
    assert (taller.context_key == magicface.references[0].context_key) == (name == "sd2"), "SDXL is told the size"
    noise, personas = pipeline.noise([1], 64, 64), {"S*": persona}
    both = pipeline.sample(noise, prompt, personas=personas, request=magicface, steps=3)
    assert torch.isfinite(both).all()
    assert not torch.equal(both, pipeline.sample(noise, prompt, personas=personas, steps=3))
    assert not torch.equal(both, pipeline.sample(noise, plain, request=magicface, steps=3))


@pytest.mark.parametrize(
    ("metadata", "markers", "asked", "found"),
    [
        ({}, (), None, "epsilon"),
        ({}, ("v_pred",), None, "v_prediction"),
        ({"modelspec.prediction_type": "v"}, (), None, "v_prediction"),
        ({"modelspec.prediction_type": "epsilon"}, ("v_pred",), None, "epsilon"),
        ({}, ("v_pred", "ztsnr"), None, "v_prediction"),
        ({}, (), "v_prediction", "v_prediction"),
    ],
)
def test_prediction_is_told_or_asked_for(tmp_path: Path, families, metadata, markers, asked, found) -> None:
    family = families["sd1"]
    path = written(tmp_path / "a.safetensors", family, made(family), metadata=metadata, markers=markers)
    loaded = load_checkpoint(path, CPU, prediction=asked)
    assert loaded.prediction == loaded.scheduler().config.prediction_type == found
    assert loaded.schedule.get("rescale_betas_zero_snr", False) == ("ztsnr" in markers)


def test_sd2_without_the_spread_is_the_512_pixel_base(tmp_path: Path, families: dict[str, Family]) -> None:
    family = families["sd2"]
    loaded = load_checkpoint(written(tmp_path / "base.safetensors", family, made(family)), CPU)
    assert (loaded.prediction, loaded.side) == ("epsilon", 512)


@pytest.mark.parametrize("name", ["sd2", "sdxl"])
def test_a_folder_of_diffusers(tmp_path: Path, families: dict[str, Family], name: str) -> None:
    models = made(families[name])
    scheduler = diffusers.EulerDiscreteScheduler(**checkpoints.SCHEDULE, prediction_type="v_prediction")
    parts = {"unet": models.unet, "vae": models.vae, "scheduler": scheduler, "text_encoder": models.texts[0],
             "tokenizer": load_tokenizer()}
    models.vae.register_to_config(scaling_factor=models.factor)
    if name == "sdxl":
        pipe = diffusers.StableDiffusionXLPipeline(**parts, text_encoder_2=models.texts[1],
                                                   tokenizer_2=load_tokenizer())
    else:
        pipe = diffusers.StableDiffusionPipeline(**parts, safety_checker=None, feature_extractor=None)
    pipe.save_pretrained(tmp_path / "saved")
    loaded = load_checkpoint(tmp_path / "saved", CPU)
    assert_same(loaded, models)
    assert (loaded.prediction, loaded.base["family"], loaded.side) == ("v_prediction", name, families[name].side)


def test_half_precision_models_take_full_precision_latents(tmp_path: Path, families: dict[str, Family]) -> None:
    family = families["sd1"]
    models = made(family)
    path = written(tmp_path / "a.safetensors", family, models)
    half, full = (load_checkpoint(path, CPU, dtype) for dtype in (torch.bfloat16, torch.float32))
    noise = full.noise([1], 64, 64)
    ours, reference = (loaded.sample(noise, PROMPT, steps=2) for loaded in (half, full))
    assert ours.dtype == torch.float32
    assert (ours - reference).norm() < 0.1 * reference.norm()


@pytest.mark.parametrize(
    ("name", "words"),
    [("nowhere", "nothing"), ("text.safetensors", "does not open"), ("unet.safetensors", "lacks"),
     ("inpainting.safetensors", "9 channels"), ("empty", "does not load")],
)
def test_what_cannot_be_loaded_is_told(tmp_path: Path, name: str, words: str) -> None:
    (tmp_path / "text.safetensors").write_text("no weights")
    (tmp_path / "empty").mkdir()
    parts = {checkpoints._UNET_KEY: torch.zeros(1, 4, 3, 3)}
    save_file(parts, tmp_path / "unet.safetensors")
    whole = {**parts, checkpoints._VAE_KEY: torch.zeros(1), SD1.telling[0]: torch.zeros(1)}
    save_file({**whole, checkpoints._UNET_KEY: torch.zeros(1, 9, 3, 3)}, tmp_path / "inpainting.safetensors")
    with pytest.raises(LikenessError, match=words):
        load_checkpoint(tmp_path / name, CPU)


def test_another_pipeline_is_refused(tmp_path: Path) -> None:
    unet, scheduler = tiny_unet(), diffusers.DDPMScheduler()
    diffusers.StableDiffusionInpaintPipeline(
        diffusers.AutoencoderKL(block_out_channels=(32,), norm_num_groups=8), tiny_text(), load_tokenizer(), unet,
        scheduler, None, None, requires_safety_checker=False,
    ).save_pretrained(tmp_path / "inpaint")  # fmt: skip
    with pytest.raises(LikenessError, match="StableDiffusionInpaintPipeline"):
        load_checkpoint(tmp_path / "inpaint", CPU)
