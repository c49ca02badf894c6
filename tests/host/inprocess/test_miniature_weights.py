"""The shipped miniature in ComfyUI: the weights of the repository, not random ones."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from likeness.hosts.comfy.miniature import models as miniature
from likeness.hosts.comfy.miniature import sample as miniature_world
from likeness.hosts.comfy.unet import NATIVE_SIDE
from likeness.hosts.diffusers.miniature import load_text_encoder, load_unet
from likeness.miniature import models


@pytest.fixture(scope="module")
def loaded():
    return miniature.load()


def sample(**changes) -> miniature_world.Sample:
    request = {
        "identity": 3, "held_out": True, "shot": "portrait", "scene": "snow", "style": "flat", "garment": "suit",
        "garment_colour": "blue", "accessory": "hat", "accessory_colour": "red", "expression": "smiling", "layout": 5,
        "size": 256, **changes,
    }  # fmt: skip
    return miniature_world.draw(miniature_world.SampleRequest(**request))


def test_model_tells_its_picture_size(loaded) -> None:
    assert loaded[0].get_attachment(NATIVE_SIDE) == models.picture_size()


def test_help_names_the_picture_size() -> None:
    page = Path(models.__file__).parents[2] / "js" / "docs" / "LikenessMiniatureLoader.md"
    assert f"{models.picture_size()} x {models.picture_size()} pixels" in page.read_text("utf-8")


def test_text_encoder_is_that_of_the_headless_commands(loaded) -> None:
    clip = loaded[1]
    tokens = clip.tokenize(sample().caption)
    ids = torch.tensor([[token for token, _ in tokens["l"][0]]])
    with torch.no_grad():
        expected = load_text_encoder()(ids).last_hidden_state
    got = clip.encode_from_tokens(tokens)
    assert (got - expected).abs().max() < 0.02  # ComfyUI keeps text encoders in float16


def test_unet_is_that_of_the_headless_commands(loaded) -> None:
    torch.manual_seed(0)
    latent, context, steps = torch.randn(1, 4, 32, 32), torch.randn(1, 77, models.TEXT_WIDTH), torch.tensor([500])
    with torch.no_grad():
        expected = load_unet()(latent, steps, context).sample
        got = loaded[0].model.diffusion_model(latent, steps, context)
    assert (got - expected).abs().max() < 1e-4 * expected.abs().max()


def test_autoencoder_keeps_a_drawn_picture(loaded) -> None:
    image, vae = sample().image, loaded[2]
    error = (vae.decode(vae.encode(image)) - image).square().mean()
    assert -10 * error.log10() > 20  # dB


def test_preview_colours_resemble_the_picture(loaded) -> None:
    model, _, vae = loaded
    image = sample().image
    latent = model.model.process_latent_in(vae.encode(image))
    seen = torch.einsum("bchw,cd->bdhw", latent, torch.tensor(model.model.latent_format.latent_rgb_factors))
    seen = seen + torch.tensor(model.model.latent_format.latent_rgb_factors_bias)[None, :, None, None]
    small = torch.nn.functional.avg_pool2d(image.movedim(-1, 1) * 2 - 1, 8)
    assert torch.corrcoef(torch.stack([seen.flatten(), small.flatten()]))[0, 1] > 0.7


def test_drawn_sample_is_fixed_by_its_seeds() -> None:
    first, again, other = sample(), sample(), sample(identity=4)
    assert torch.equal(first.image, again.image)
    assert not torch.equal(first.image, other.image)


@pytest.mark.parametrize("shot", ["portrait", "half body", "full body"])
def test_masks_fit_the_picture(shot: str) -> None:
    drawn = sample(shot=shot, size=192)
    assert drawn.image.shape == (1, 192, 192, 3)
    assert drawn.face.shape == drawn.person.shape == drawn.accessory.shape == (1, 192, 192)
    assert drawn.person.sum() > drawn.face.sum() > 0
    assert drawn.accessory.sum() > 0
    assert not sample(accessory=miniature_world.NOTHING).accessory.any()
    assert set(drawn.person.unique().tolist()) <= {0.0, 1.0}
