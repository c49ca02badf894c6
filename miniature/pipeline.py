"""A text-to-picture pipeline without a download: the miniature, or a local SD1.5 checkpoint, on the diffusers host."""

from __future__ import annotations

import functools
import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from ..core.errors import bad_input
from ..core.magicface.references import digest
from ..core.magicface.request import MagicFaceRequest, Reference
from ..core.magicface.tokens import find_phrase
from ..core.masks import check_mask
from ..hosts.diffusers.magicface import sample_magicface
from ..hosts.diffusers.sampling import Callback, Conditioning
from . import models
from .tokenizer import words_of

LATENT_FACTOR = 8
SD15_UNET = {
    "sample_size": 64, "in_channels": 4, "out_channels": 4, "block_out_channels": [320, 640, 1280, 1280],
    "layers_per_block": 2, "cross_attention_dim": 768, "attention_head_dim": 8, "norm_num_groups": 32,
    "down_block_types": list(models.UNET["down_block_types"]), "up_block_types": list(models.UNET["up_block_types"]),
}
SD15_VAE = {
    "in_channels": 3, "out_channels": 3, "latent_channels": 4, "block_out_channels": [128, 256, 512, 512],
    "layers_per_block": 2, "norm_num_groups": 32, "sample_size": 512, "scaling_factor": 0.18215,
    "down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4,
}
SD15_TEXT = {
    **models.TEXT_ENCODER, "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
    "num_attention_heads": 12, "projection_dim": 768,
}
_TEXT_PREFIX = "cond_stage_model.transformer."


@dataclass(frozen=True)
class Pipeline:
    """The models of one base, and what is done with them headless.

    Attributes:
        unet, text_encoder: in evaluation mode.
        encode_latent, decode_latent: pictures ``B 3 H W`` in [-1, 1] to scaled latents and back.
        side: picture side in pixels the UNet was trained at.
        name: for tables.
    """

    unet: torch.nn.Module
    text_encoder: torch.nn.Module
    encode_latent: Callable[[Tensor], Tensor]
    decode_latent: Callable[[Tensor], Tensor]
    side: int
    name: str

    def text(self, prompts: Sequence[str]) -> Conditioning:
        """Conditioning ``B 77 C`` of prompts."""
        with torch.no_grad():
            hidden = self.text_encoder(input_ids=models.tokenize(list(prompts)).to(self.unet.device)).last_hidden_state
        return Conditioning(hidden)

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Pictures ``B 3 H W`` in [0, 1], sides multiples of 8, to scaled latents ``B 4 H/8 W/8``."""
        return self.encode_latent(images.to(self.unet.device) * 2 - 1)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Scaled latents to pictures ``B 3 H W`` in [0, 1], on the CPU."""
        return (self.decode_latent(latents) / 2 + 0.5).clamp(0, 1).float().cpu()

    def reference(
        self, image: Tensor, word: str, prompt: str, mask: Tensor | None = None, weight: float = 3.0,
        own_prompt: str | None = None, region: Tensor | None = None,
    ) -> Reference:
        """One concept picture, ready for a request.

        Args:
            image: ``3 H W`` in [0, 1].
            word: the concept's word or phrase; it must stand in ``prompt``.
            prompt: the prompt of the picture to be made.
            mask: ``h w`` in [0, 1] of any size; None is the whole picture.
            weight: w of section 3.2.4.
            own_prompt: prompt of the reference's own forward; None is the word.
            region: where in the new picture it belongs, ``h w`` in [0, 1] of any size; None: where the map finds it.
        """
        name = f"MagicFace reference '{word}'"
        if mask is not None:
            check_mask(mask, name)
        if region is not None:
            check_mask(region, name, "region", "to let the semantic map find its place")
        own = word if own_prompt is None else own_prompt
        found = find_phrase(words_of(word), words_of(prompt), name=word, text=prompt, source=f"{name}: prompt")
        context = self.text([own])
        return Reference(
            name=word, latent=self.encode(image[None]), context=context, context_key=digest(context.context),
            positions=tuple(position for occurrence in found for position in occurrence), mask=mask, weight=weight,
            region=region,
        )

    def noise(self, seeds: Sequence[int], height: int | None = None, width: int | None = None) -> Tensor:
        """Start noise ``B 4 h w``, one seed a picture, the same on every device."""
        shape = (4, (height or self.side) // LATENT_FACTOR, (width or self.side) // LATENT_FACTOR)
        draws = [torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        return torch.stack(draws).to(self.unet.device)

    def generate(
        self, prompt: str, seeds: Sequence[int], request: MagicFaceRequest | None = None, steps: int = 30,
        scale: float = 5.0, width: int | None = None, callback: Callback | None = None,
    ) -> Tensor:
        """Pictures ``B 3 H W`` in [0, 1] of one prompt, one seed each; DDIM with classifier-free guidance.

        Args:
            prompt: what to draw.
            seeds: one a picture.
            request: MagicFace's; None is vanilla.
            steps, scale: of the sampler and of the guidance.
            width: in pixels, when not square.
            callback: told after every step.
        """
        schedule = models.scheduler()
        schedule.set_timesteps(steps)
        request = request or MagicFaceRequest(references=())
        latents = sample_magicface(
            self.unet, request, schedule, self.noise(seeds, width=width), self.text([prompt]), self.text([""]), scale,
            callback=callback,
        )
        return self.decode(latents)


@functools.cache
def miniature() -> Pipeline:
    """The shipped miniature, loaded once."""
    autoencoder = models.load_autoencoder().to(memory_format=torch.channels_last)
    factor = autoencoder.scaling_factor
    return Pipeline(
        unet=models.load_unet().to(memory_format=torch.channels_last),
        text_encoder=models.load_text_encoder(),
        encode_latent=lambda x: autoencoder.encode(x) * factor,
        decode_latent=lambda z: autoencoder.decode(z / factor),
        side=models.picture_size(),
        name="miniature",
    )


def from_checkpoint(path: Path, device: torch.device | None = None) -> Pipeline:
    """An SD1.x checkpoint from a local file; nothing is downloaded.

    Raises:
        LikenessError: no such file, not a safetensors file, or not an SD1.x checkpoint.
    """
    state = read_checkpoint(path)
    device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.float16 if device.type == "cuda" else torch.float32
    place = lambda model: model.to(device, dtype).eval().requires_grad_(False)  # noqa: E731
    vae = place(_single_file("AutoencoderKL", "vae", SD15_VAE, path)).float()
    factor = SD15_VAE["scaling_factor"]
    return Pipeline(
        unet=place(_single_file("UNet2DConditionModel", "unet", SD15_UNET, path)),
        text_encoder=place(_text_encoder(state)),
        encode_latent=lambda x: (vae.encode(x.float()).latent_dist.mean * factor).to(dtype),
        decode_latent=lambda z: vae.decode(z.float() / factor).sample,
        side=512,
        name=path.stem,
    )


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """The file's text encoder weights, after checks that it is an SD1.x checkpoint.

    Raises:
        LikenessError: it is not.
    """
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise bad_input("--checkpoint", f"{path}, where there is no file", "a local SD1.5 .safetensors file",
                        "Check the path.")
    try:
        with safe_open(path, "pt") as file:
            keys = set(file.keys())
    except SafetensorError as error:
        raise bad_input("--checkpoint", f"{path.name}, which does not open as safetensors ({error})",
                        "a .safetensors file", "Convert .ckpt files to safetensors first.") from error
    wanted = ("model.diffusion_model.input_blocks.0.0.weight", f"{_TEXT_PREFIX}text_model.final_layer_norm.weight",
              "first_stage_model.decoder.conv_in.weight")
    missing = [key for key in wanted if key not in keys]
    if missing:
        raise bad_input("--checkpoint", f"{path.name}, which lacks {', '.join(missing)}",
                        "a whole SD1.x checkpoint with UNet, text encoder and VAE",
                        "Pick an SD1.5 checkpoint; SDXL, SD2 and UNet-only files work in ComfyUI.")
    return {k: v for k, v in load_file(path).items() if k.startswith(_TEXT_PREFIX)}


def _single_file(class_name: str, part: str, config: dict, path: Path) -> Any:
    """A model of diffusers from the checkpoint, configured here instead of from the hub."""
    import diffusers

    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder, part)
        target.mkdir()
        (target / "config.json").write_text(json.dumps({"_class_name": class_name, **config}))
        loader = getattr(diffusers, class_name).from_single_file
        return loader(str(path), config=folder, subfolder=part, local_files_only=True)


def _text_encoder(state: dict[str, Tensor]) -> torch.nn.Module:
    from transformers import CLIPTextConfig, CLIPTextModel

    model = CLIPTextModel(CLIPTextConfig(**SD15_TEXT))
    weights = {k.removeprefix(_TEXT_PREFIX): v.float() for k, v in state.items() if not k.endswith("position_ids")}
    models.load_text_weights(model, weights)
    return model
