"""Stable Diffusion checkpoints (SD1.x, SD2.x, SDXL) from a local file or folder, without a download.

diffusers converts original checkpoint files, but takes the models' configurations from the hub; they are given here.
Its pipelines are imported where a checkpoint is loaded: they bring much that the miniature does not need.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from ...core.errors import LikenessError, bad_input
from ...core.persona.clip import JointText
from ...miniature.models import BOS, EOS, VOCABULARY
from .persona import clip_text
from .pipeline import LATENT_CHANNELS, LATENT_FACTOR, SAMPLER, SCHEDULE, Pipeline
from .tokenizer import ClipTokenizerAdapter, load_tokenizer

EXPECTED = "a Stable Diffusion checkpoint (SD1.x, SD2.x or SDXL) with UNet, text encoder and VAE"
PREDICTIONS = ("epsilon", "v_prediction")
#: A v-prediction model of SD2.x tells itself by the spread of this weight.
TELLING_BIAS, TELLING_SPREAD = "model.diffusion_model.output_blocks.11.1.transformer_blocks.0.norm1.bias", 0.09

_SD_LEVELS = {
    "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
    "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
    "block_out_channels": [320, 640, 1280, 1280],
}
_VAE = {
    "down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4,
    "block_out_channels": [128, 256, 512, 512], "layers_per_block": 2, "latent_channels": LATENT_CHANNELS,
}  # fmt: skip
_CLIP = {"vocab_size": VOCABULARY, "max_position_embeddings": 77, "bos_token_id": BOS, "eos_token_id": EOS}
_CLIP_L = {
    **_CLIP, "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
    "hidden_act": "quick_gelu", "projection_dim": 768,
}  # fmt: skip


@dataclass(frozen=True)
class Family:
    """What is the same in all checkpoints of one base.

    Attributes:
        name: written into personas.
        side: picture side in pixels. unet, vae: diffusers' configurations.
        texts: transformers' configurations of the text encoders, in the order in which their outputs are joined.
        telling: keys by which a file's text encoders tell the family.
    """

    name: str
    side: int
    unet: Mapping[str, Any]
    vae: Mapping[str, Any]
    texts: tuple[Mapping[str, Any], ...]
    telling: tuple[str, ...]


_UNET_KEY, _VAE_KEY = "model.diffusion_model.input_blocks.0.0.weight", "first_stage_model.decoder.conv_in.weight"
SD1 = Family(
    "sd1", 512, {**_SD_LEVELS, "cross_attention_dim": 768, "attention_head_dim": 8}, _VAE, (_CLIP_L,),
    ("cond_stage_model.transformer.text_model.embeddings.position_embedding.weight",),
)  # fmt: skip
#: The last of OpenCLIP's 24 blocks is not used.
SD2 = Family(
    "sd2", 768,
    {**_SD_LEVELS, "cross_attention_dim": 1024, "attention_head_dim": [5, 10, 20, 20], "use_linear_projection": True,
     "upcast_attention": True},
    _VAE,
    ({**_CLIP, "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 23, "num_attention_heads": 16,
      "hidden_act": "gelu", "projection_dim": 512},),
    ("cond_stage_model.model.token_embedding.weight",),
)  # fmt: skip
SDXL = Family(
    "sdxl", 1024,
    {"down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
     "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
     "block_out_channels": [320, 640, 1280], "transformer_layers_per_block": [1, 2, 10], "cross_attention_dim": 2048,
     "attention_head_dim": [5, 10, 20], "use_linear_projection": True, "addition_embed_type": "text_time",
     "addition_time_embed_dim": 256, "projection_class_embeddings_input_dim": 2816},
    {**_VAE, "scaling_factor": 0.13025},
    (_CLIP_L,
     {**_CLIP, "hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 20,
      "hidden_act": "gelu", "projection_dim": 1280}),
    ("conditioner.embedders.0.transformer.text_model.embeddings.position_embedding.weight",
     "conditioner.embedders.1.model.positional_embedding"),
)  # fmt: skip
FAMILIES = (SD1, SD2, SDXL)


def load_checkpoint(
    path: str | Path,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    prediction: str | None = None,
) -> Pipeline:
    """A Stable Diffusion checkpoint as a pipeline; nothing is downloaded.

    Args:
        path: a ``.safetensors`` file under the original key names, or a folder in diffusers' layout.
        device: by default CUDA where there is one.
        dtype: of UNet and text encoders; by default float16 on CUDA, else float32. The VAE stays in float32.
        prediction: one of :data:`PREDICTIONS`; by default as the checkpoint tells.

    Raises:
        LikenessError: nothing is there, or it is no whole checkpoint of these families.
    """
    path = Path(path)
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    dtype = dtype or (torch.float16 if device.type == "cuda" else torch.float32)
    if prediction not in (None, *PREDICTIONS):
        raise bad_input("checkpoint: prediction", repr(prediction), f"one of {PREDICTIONS}", "Pick one, or leave it.")
    if not path.exists():
        raise bad_input("--checkpoint", f"{path}, where there is nothing", EXPECTED, "Check the path.")
    try:
        parts = from_folder(path) if path.is_dir() else from_file(path)
    except LikenessError:
        raise
    except (OSError, ValueError, KeyError, RuntimeError) as cause:
        came = f"{path.name}, which does not load ({cause})"
        raise bad_input("--checkpoint", came, EXPECTED, "Pick another.") from cause
    if prediction is not None:
        parts.schedule["prediction_type"] = prediction
    return parts.pipeline(path.stem, device, dtype)


@dataclass(frozen=True)
class Parts:
    """A loaded base: diffusers' pipeline object, which only holds its models here, and what it does not tell.

    Attributes:
        loaded: StableDiffusionPipeline or StableDiffusionXLPipeline.
        schedule: of the DDIM scheduler.
        family: for personas.
        side: picture side in pixels.
    """

    loaded: Any
    schedule: dict[str, Any]
    family: str
    side: int

    def pipeline(self, name: str, device: torch.device, dtype: torch.dtype) -> Pipeline:
        """The models in their places and types."""
        unet, vae = placed(self.loaded.unet, device, dtype), placed(self.loaded.vae, device, torch.float32)
        encoders = [placed(encoder, device, dtype) for encoder in self._encoders()]
        text, pool = _joined(encoders) if len(encoders) == 2 else (clip_text(encoders[0]), None)
        factor = vae.config.scaling_factor
        return Pipeline(
            unet=unet,
            text=text,
            tokenizer=ClipTokenizerAdapter(self.loaded.tokenizer),
            encode_image=lambda x: (vae.encode(x.float() * 2 - 1).latent_dist.mean * factor).to(x),
            decode_image=lambda z: vae.decode(z.float() / factor).sample / 2 + 0.5,
            side=self.side,
            name=name,
            base={"family": self.family, "context_width": unet.config.cross_attention_dim},
            schedule=self.schedule,
            pool=pool,
        )

    def _encoders(self) -> list[nn.Module]:
        return [e for e in (self.loaded.text_encoder, getattr(self.loaded, "text_encoder_2", None)) if e is not None]


def placed(model: nn.Module, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """The model on a device and in a type, ready to be used frozen."""
    model = model.to(device) if model.dtype == dtype else model.to(device, dtype)
    return model.eval().requires_grad_(False)


def _joined(encoders: list[nn.Module]) -> tuple[JointText, Any]:
    """SDXL's two encoders, each before its last block and without the final norm, and the second one's pooled output.

    Behind the end of the text the first one reads end tokens, the second one zeros.
    """
    pads = (EOS, 0)
    text = JointText([clip_text(encoder, skip=1, normalised=False) for encoder in encoders], pads, EOS)

    def pool(ids: Tensor) -> Tensor:
        return encoders[1](input_ids=text.padded(ids, pads[1])).text_embeds

    return text, pool


# --- original checkpoint files ----------------------------------------------------------------------------------------


def from_file(path: Path) -> Parts:
    """A file under the original key names.

    Raises:
        LikenessError: not safetensors, or not a whole text-to-image checkpoint.
    """
    from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline

    try:
        with safe_open(path, "pt") as file:
            family, schedule = family_of(file, path.name), schedule_of(file)
    except SafetensorError as error:
        raise bad_input("--checkpoint", f"{path.name}, which does not open as safetensors ({error})",
                        "a .safetensors file", "Convert .ckpt files to safetensors first.") from error
    kind = StableDiffusionXLPipeline if len(family.texts) == 2 else StableDiffusionPipeline
    tokenizers = {"tokenizer": load_tokenizer()}
    if len(family.texts) == 2:
        tokenizers["tokenizer_2"] = load_tokenizer()
    with tempfile.TemporaryDirectory() as folder:
        write_configs(family, kind.__name__, Path(folder))
        loaded = kind.from_single_file(str(path), config=folder, local_files_only=True, **tokenizers)
    noise_at_512 = family.name == "sd2" and schedule["prediction_type"] == "epsilon"  # SD2.x-base
    return Parts(loaded, schedule, family.name, 512 if noise_at_512 else family.side)


def family_of(file: Any, name: str) -> Family:
    """The family of an open safetensors file.

    Raises:
        LikenessError: it lacks a part, or paints into pictures.
    """
    keys = set(file.keys())
    missing = [key for key in (_UNET_KEY, _VAE_KEY) if key not in keys]
    family = next((f for f in FAMILIES if all(key in keys for key in f.telling)), None)
    if family is None:
        missing.append("the text encoder of SD1.x, SD2.x or SDXL")
    if missing:
        raise bad_input("--checkpoint", f"{name}, which lacks {', '.join(missing)}", EXPECTED,
                        "Pick a whole checkpoint; UNet-only files work in ComfyUI.")
    channels = file.get_slice(_UNET_KEY).get_shape()[1]
    if channels != LATENT_CHANNELS:
        raise bad_input("--checkpoint", f"{name}, whose UNet takes {channels} channels",
                        f"{LATENT_CHANNELS}, as text-to-image models have", "Inpainting models are not supported.")
    return family


def schedule_of(file: Any) -> dict[str, Any]:
    """The noise schedule of an open safetensors file, with the model's prediction type.

    Told, in this order, by ModelSpec's metadata, by the marker that SDXL fine-tunes carry, or in SD2.x by the spread of
    one weight (as ComfyUI tells them).
    """
    keys, told = set(file.keys()), (file.metadata() or {}).get("modelspec.prediction_type", "")
    velocity = told.startswith("v") if told else "v_pred" in keys
    if not told and all(key in keys for key in (*SD2.telling, TELLING_BIAS)):
        velocity |= float(file.get_tensor(TELLING_BIAS).float().std(correction=0)) > TELLING_SPREAD
    schedule = {**SCHEDULE, "prediction_type": PREDICTIONS[velocity]}
    if "ztsnr" in keys:
        schedule["rescale_betas_zero_snr"] = True
    return schedule


def write_configs(family: Family, kind: str, folder: Path) -> None:
    """A folder of configurations in diffusers' layout."""
    unet = {"in_channels": LATENT_CHANNELS, "out_channels": LATENT_CHANNELS, "layers_per_block": 2,
            "sample_size": family.side // LATENT_FACTOR, **family.unet}  # fmt: skip
    parts: dict[str, tuple[str, str, Mapping[str, Any]]] = {
        "unet": ("diffusers", "UNet2DConditionModel", unet),
        "vae": ("diffusers", "AutoencoderKL", {"sample_size": family.side, "scaling_factor": 0.18215, **family.vae}),
        "scheduler": ("diffusers", "DDIMScheduler", {**SCHEDULE, **SAMPLER}),
        "text_encoder": ("transformers", "CLIPTextModel", family.texts[0]),
    }
    if len(family.texts) == 2:
        parts["text_encoder_2"] = ("transformers", "CLIPTextModelWithProjection", family.texts[1])
    index = {name: [library, cls] for name, (library, cls, _) in parts.items()}
    (folder / "model_index.json").write_text(json.dumps({"_class_name": kind, **index}))
    for name, (library, cls, config) in parts.items():
        (folder / name).mkdir()
        file = "scheduler_config.json" if name == "scheduler" else "config.json"
        told = {"model_type": "clip_text_model"} if library == "transformers" else {"_class_name": cls}
        (folder / name / file).write_text(json.dumps({**told, **config}))


# --- folders ----------------------------------------------------------------------------------------------------------


def from_folder(path: Path) -> Parts:
    """A folder in diffusers' layout.

    Raises:
        LikenessError: another kind of pipeline.
    """
    from diffusers import DiffusionPipeline, StableDiffusionPipeline, StableDiffusionXLPipeline

    loaded = DiffusionPipeline.from_pretrained(str(path), local_files_only=True, **_without_checker(path))
    if not isinstance(loaded, (StableDiffusionPipeline, StableDiffusionXLPipeline)):
        raise bad_input("--checkpoint", f"{path.name}, a {type(loaded).__name__}", EXPECTED, "Pick another.")
    wanted = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "prediction_type",
              "rescale_betas_zero_snr")  # fmt: skip
    config = loaded.scheduler.config
    schedule = {name: config[name] for name in wanted if config.get(name) is not None}
    unet = loaded.unet.config
    family = SDXL if isinstance(loaded, StableDiffusionXLPipeline) else SD2 if unet.use_linear_projection else SD1
    return Parts(loaded, schedule, family.name, unet.sample_size * LATENT_FACTOR)


def _without_checker(path: Path) -> dict[str, None]:
    index = json.loads((path / "model_index.json").read_text("utf-8")) if (path / "model_index.json").exists() else {}
    return {"safety_checker": None} if "safety_checker" in index else {}
