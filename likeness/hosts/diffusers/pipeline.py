"""A text-to-picture pipeline without a download: the miniature, or a local SD1.5 checkpoint, on the diffusers host."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler
from safetensors.torch import load_file
from torch import Tensor
from transformers import CLIPTextModel

from ...core.digest import digest
from ...core.errors import bad_input
from ...core.magicface.request import MagicFaceRequest, Reference
from ...core.masks import check_mask
from ...core.prompt import find_phrase
from ...miniature import models
from ...miniature.models import SCHEDULE
from .magicface import sample_magicface
from .persona import ClipTokenizerAdapter, PersonaHost, clip_text
from .sampling import Callback, Conditioning
from .tokenizer import tokenize, words_of

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
            hidden = self.text_encoder(input_ids=tokenize(list(prompts)).to(self.unet.device)).last_hidden_state
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
        schedule = scheduler()
        schedule.set_timesteps(steps)
        request = request or MagicFaceRequest(references=())
        latents = sample_magicface(
            self.unet, request, schedule, self.noise(seeds, width=width), self.text([prompt]), self.text([""]), scale,
            callback=callback,
        )
        return self.decode(latents)


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
    load_text_weights(model, weights)
    return model


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


def scheduler() -> DDIMScheduler:
    """The noise schedule (SD1.5's), as a DDIM scheduler."""
    return DDIMScheduler(**SCHEDULE, clip_sample=False, set_alpha_to_one=False, steps_offset=1)


def load_text_weights(model: CLIPTextModel, weights: dict[str, Tensor]) -> None:
    """Load ``text_model.`` keys whether or not this transformers version has the prefix."""
    prefixed = any(key.startswith("text_model.") for key in model.state_dict())
    model.load_state_dict(weights if prefixed else {k.removeprefix("text_model."): v for k, v in weights.items()})
