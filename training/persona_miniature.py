"""PersonaMagic on the miniature and on local Stable Diffusion checkpoints, without ComfyUI."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from ..core.errors import bad_input
from ..hosts.diffusers.persona import ClipTokenizerAdapter, PersonaHost, clip_text
from ..miniature.world import Identity, Picture, ground_truth, render, sample_identity
from ..miniature.world.spec import sample_figure
from .persona_config import PersonaTraining
from .photos import Photo, check_mask, fit, latent_mask, pooled_latent_embedding

#: Prompts in the words the miniature knows; the evaluation's own are captions of held-out combinations. Most name
#: clothes and a scene: the loss looks at the face alone, and the words learn to be heard among others.
WORLD_TEMPLATES = (
    "a picture of a {}",
    "a picture of a {}, portrait",
    "a picture of a {}, portrait, in a studio",
    "a picture of a {} wearing a blue shirt, portrait, in a studio",
    "a picture of a {} wearing a white hoodie, portrait, in the snow",
    "a picture of a {} wearing a green suit, portrait, in the city",
    "a picture of a {} wearing a yellow sweater, portrait, on the beach",
    "a picture of a {} wearing a red dress, portrait, in a room",
    "a picture of a {} wearing a black shirt, portrait, in a meadow",
    "a picture of a {} wearing a brown hoodie, portrait, at night",
    "a picture of a {} wearing a pink shirt, portrait, in the desert",
    "a picture of a {} wearing a purple suit, portrait, in the jungle",
)
WORLD_TANDEM = tuple(
    f"a picture of a {{}} wearing a {clothes}, portrait, {scene}"
    for clothes, scene in (
        ("red shirt", "in the snow"), ("blue suit and a hat", "in the city"), ("green dress", "on the beach"),
        ("yellow hoodie and a scarf", "at night"), ("pink sweater and a crown", "in the jungle"),
        ("black suit and a tie", "in a room"), ("white shirt and sunglasses", "in the desert"),
        ("orange dress and a flower", "in a meadow"), ("purple hoodie and headphones", "under water"),
        ("brown sweater and glasses", "in the city"),
    )
)  # fmt: skip


def miniature_request(**changes: object) -> PersonaTraining:
    """Defaults that suit the miniature: its words, and fewer, larger steps than a full model takes.

    Chosen on held-out people that no table uses: the stage at much noise brings the person nearest; going back to the
    plain word below it (the paper's introduction; the released code holds the last words) keeps more of the prompt at
    equal identity; eight words bring the person nearer than four in a context this narrow, at the same cost.
    """
    base = PersonaTraining(
        supercategory="person",
        steps=150,
        batch=2,
        tokens=8,
        learning_rate=2e-3,
        low=500,
        high=900,
        late="supercategory",
        templates=WORLD_TEMPLATES,
        tandem_prompts=WORLD_TANDEM,
        residual_dropout=0.25,
    )
    return replace(base, **changes)


def miniature_host() -> tuple[PersonaHost, int]:
    """The shipped miniature and its picture size in pixels."""
    from ..miniature import models

    autoencoder, unet = models.load_autoencoder(), models.load_unet()
    scale = autoencoder.scaling_factor
    host = PersonaHost(
        unet=unet,
        text=clip_text(models.load_text_encoder()),
        tokenizer=ClipTokenizerAdapter(models.load_tokenizer()),
        encode_image=lambda x: autoencoder.encode(x * 2 - 1) * scale,
        decode_image=lambda z: autoencoder.decode(z / scale) / 2 + 0.5,
        alphas_cumprod=models.scheduler().alphas_cumprod,
        base={"family": "miniature"},
    )
    return host, models.picture_size()


def checkpoint_host(path: str | Path, device: str = "auto") -> tuple[PersonaHost, int]:
    """A local SD1.x or SD2.x checkpoint file or diffusers folder.

    Raises:
        LikenessError: no such file, or not a Stable Diffusion of one text encoder.
    """
    from diffusers import StableDiffusionPipeline

    path = Path(path)
    if not path.exists():
        raise bad_input("persona: --checkpoint", str(path), "a local file or folder", "Check the path.")
    load = StableDiffusionPipeline.from_single_file if path.is_file() else StableDiffusionPipeline.from_pretrained
    try:
        pipe = load(str(path), local_files_only=True, safety_checker=None)
    except (OSError, ValueError, KeyError) as cause:
        raise bad_input("persona: --checkpoint", f"{path.name} ({cause})", "SD1.x or SD2.x", "Pick another.") from cause
    device = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    pipe.to(device)
    vae, scale = pipe.vae.requires_grad_(False), pipe.vae.config.scaling_factor
    host = PersonaHost(
        unet=pipe.unet.eval(),
        text=clip_text(pipe.text_encoder.eval()),
        tokenizer=ClipTokenizerAdapter(pipe.tokenizer),
        encode_image=lambda x: vae.encode(x * 2 - 1).latent_dist.mean * scale,
        decode_image=lambda z: vae.decode(z / scale).sample / 2 + 0.5,
        alphas_cumprod=pipe.scheduler.alphas_cumprod.to(device),
        base={"family": "sd", "context_width": pipe.unet.config.cross_attention_dim},
        prediction=pipe.scheduler.config.prediction_type,
    )
    return host, pipe.unet.config.sample_size * 8


@torch.no_grad()
def prepare_photo(
    host: PersonaHost, picture: Tensor, mask: Tensor, size: int, image_width: int = 512, crop: bool = False
) -> Photo:
    """One picture ``3 H W`` in [0, 1] and its mask ``1 H W`` as a training example of ``size`` pixels."""
    fitted = fit(picture, size, crop)[None].to(host.device)
    latent = host.encode_image(fitted)
    small = latent_mask(fit(check_mask(mask), size, crop), latent.shape[-2:]).to(host.device)
    image = pooled_latent_embedding(latent)[0] if image_width else None
    return Photo(latent[0], small, image)


def image_width(photo: Photo) -> int:
    """Length of a photo's image embedding; 0 without one."""
    return 0 if photo.image is None else photo.image.numel()


# --- people of the drawn world ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Person:
    """A held-out person of the drawn world with one portrait.

    ``image``: ``3 H W``; ``mask``: head with hair, ``1 H W``; ``box``: the face's, in pixels.
    """

    identity: Identity
    image: Tensor
    mask: Tensor
    box: tuple[float, float, float, float]


def draw_person(number: int, size: int) -> Person:
    """Held-out person ``number``: a plain portrait in a studio, neutral, without accessory."""
    rng = random.Random(f"persona {number}")
    identity = sample_identity(rng, True)
    figure = replace(
        sample_figure(rng, "portrait", identity), item=None, expression="", centre=(0.5, 0.46), head=0.58, tilt=0.0,
        word="person", told="",
    )  # fmt: skip
    picture = Picture((figure,), "portrait", "studio", "flat", seed=rng.randrange(2**31))
    truth = ground_truth(picture, size)[0]
    image = torch.from_numpy(render(picture, size)).permute(2, 0, 1).float() / 255
    return Person(identity, image, torch.from_numpy(truth.face)[None].float(), truth.box)
