"""The miniature as ComfyUI's MODEL, CLIP and VAE, and any other diffusers UNet of the SD1.5 topology.

A narrow SD1.5 is not in the host's table of known checkpoints, so the three objects are put together here from the
host's own classes: its SD15 model with another ``unet_config``, its CLIP with a narrower text model, its VAE with our
first stage. From there on they are like those of any checkpoint: the host loads, offloads, casts and patches them.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Mapping
from typing import Any

import comfy.latent_formats
import comfy.model_management as management
import comfy.model_patcher
import comfy.sd
import comfy.sd1_clip
import comfy.supported_models
import comfy.supported_models_base
import comfy.utils
import torch
from torch import Tensor, nn

from ....core.errors import bad_input
from ..unet import NATIVE_SIDE

Patcher = comfy.model_patcher.ModelPatcher
#: The host's choice of patcher for models made of its own operations (dynamic offloading in newer versions).
CorePatcher = getattr(comfy.model_patcher, "CoreModelPatcher", Patcher)


class MiniatureLatent(comfy.latent_formats.SD15):
    """SD1.5's latent layout (4 channels, 8 pixels each) with the miniature's scale and preview colours."""

    def __init__(self, scale_factor: float, preview: tuple[list[list[float]], list[float]] | None = None):
        super().__init__(scale_factor)
        self.taesd_decoder_name = None  # a TAESD of SD1.5 would show the miniature's latents in wrong colours
        if preview is not None:
            self.latent_rgb_factors, self.latent_rgb_factors_bias = preview


class NarrowSD15(comfy.supported_models.SD15):
    """SD1.5 with its own widths, heads and text width, taken from a diffusers config."""

    def __init__(self, unet: Mapping[str, Any], latent_format: comfy.latent_formats.LatentFormat):
        self.unet_extra_config = {"num_heads": _heads(unet), "num_head_channels": -1}
        super().__init__(unet_config(unet))
        self.latent_format = latent_format


def unet_config(unet: Mapping[str, Any]) -> dict[str, Any]:
    """The host's description of a diffusers ``UNet2DConditionModel`` of the SD1.x topology.

    Args:
        unet: the diffusers config; ``block_out_channels`` must be integer multiples of the first and of 32.

    Raises:
        LikenessError: the widths do not fit the host's UNet.
    """
    widths = tuple(unet["block_out_channels"])
    if any(width % widths[0] or width % 32 for width in widths):
        raise bad_input(
            "Miniature UNet: block_out_channels",
            widths,
            "multiples of the first width and of 32",
            "Choose widths such as (64, 128, 192, 192).",
        )
    depths = [int("CrossAttn" in block) for block in _down_blocks(unet)]
    layers = unet.get("layers_per_block", 2)
    return {
        "use_checkpoint": False,
        "image_size": 32,
        "in_channels": unet.get("in_channels", 4),
        "out_channels": unet.get("out_channels", 4),
        "use_spatial_transformer": True,
        "legacy": False,
        "adm_in_channels": None,
        "model_channels": widths[0],
        "channel_mult": [width // widths[0] for width in widths],
        "num_res_blocks": [layers] * len(widths),
        "transformer_depth": [depth for depth in depths for _ in range(layers)],
        "transformer_depth_middle": 1,
        "transformer_depth_output": [depth for depth in depths for _ in range(layers + 1)],
        "use_linear_in_transformer": bool(unet.get("use_linear_projection", False)),
        "context_dim": unet["cross_attention_dim"],
        "use_temporal_attention": False,
        "use_temporal_resblock": False,
    }


def _down_blocks(unet: Mapping[str, Any]) -> tuple[str, ...]:
    attention = ("CrossAttnDownBlock2D",) * (len(unet["block_out_channels"]) - 1)
    return tuple(unet.get("down_block_types") or (*attention, "DownBlock2D"))


def _heads(unet: Mapping[str, Any]) -> int:
    # diffusers keeps the number of heads of SD1.x under the name attention_head_dim
    return unet.get("num_attention_heads") or unet.get("attention_head_dim", 8)


def model_from_unet(
    unet: Mapping[str, Any],
    state_dict: Mapping[str, Tensor],
    latent_format: comfy.latent_formats.LatentFormat | None = None,
) -> Patcher:
    """Wrap diffusers weights of an SD1.x-shaped UNet as ComfyUI's MODEL.

    Args:
        unet: diffusers config (``block_out_channels``, ``cross_attention_dim``, ``attention_head_dim`` ...).
        state_dict: diffusers keys; left as it is.
        latent_format: scale of the latents; SD1.5's when None.

    Raises:
        LikenessError: a weight of the UNet is missing.
    """
    config = NarrowSD15(unet, latent_format or comfy.latent_formats.SD15())
    weights = _host_keys(config.unet_config, state_dict)
    device = management.get_torch_device()
    parameters = comfy.utils.calculate_parameters(weights)
    dtype = management.unet_dtype(
        model_params=parameters,
        supported_dtypes=list(config.supported_inference_dtypes),
        weight_dtype=comfy.utils.weight_dtype(weights),
    )
    config.set_inference_dtype(dtype, management.unet_manual_cast(dtype, device, config.supported_inference_dtypes))
    model = config.get_model(weights, "").to(management.unet_offload_device())
    patcher = CorePatcher(model, load_device=device, offload_device=management.unet_offload_device())
    model.load_model_weights(weights, "", **_assign(model.load_model_weights, patcher))
    return patcher


def _assign(load: Any, patcher: Patcher) -> dict[str, bool]:
    """Newer hosts want the weights assigned, not copied, where they offload dynamically."""
    return {"assign": patcher.is_dynamic()} if "assign" in inspect.signature(load).parameters else {}


def _host_keys(config: Mapping[str, Any], state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    table = comfy.utils.unet_to_diffusers(config)
    unknown = sorted(set(state_dict) - set(table))
    if unknown:
        raise bad_input(
            "Miniature UNet: weights",
            f"{len(unknown)} unknown keys, the first '{unknown[0]}'",
            "the keys of a diffusers UNet2DConditionModel of the SD1.x topology",
            "Reinstall the pack, or retrain the miniature with the config it is loaded with.",
        )
    return {table[key]: value for key, value in state_dict.items()}


def clip_from_text_encoder(text: Mapping[str, Any], state_dict: Mapping[str, Tensor]) -> comfy.sd.CLIP:
    """Wrap a narrow CLIP text encoder as ComfyUI's CLIP, with the host's tokenizer, weights, embeddings, CLIP skip.

    Args:
        text: transformers ``CLIPTextConfig`` fields; the vocabulary is CLIP's (49,408 tokens).
        state_dict: keys of transformers' ``CLIPTextModel`` (``text_model....``), with the whole embedding table.
    """
    config = dict(text)
    weights = {f"clip_l.transformer.{_text_key(key)}": value for key, value in state_dict.items()}
    weights.pop("clip_l.transformer.text_model.embeddings.position_ids", None)
    target = comfy.supported_models_base.ClipTarget(_tokenizer(config["hidden_size"]), _text_model(config))
    return comfy.sd.CLIP(
        target,
        embedding_directory=_embedding_folders(),
        parameters=comfy.utils.calculate_parameters(weights),
        state_dict=weights,
    )


def _text_key(key: str) -> str:
    return key if key.startswith("text_model.") else f"text_model.{key}"


def _embedding_folders() -> list[str] | None:
    import folder_paths  # only a running ComfyUI has it

    return folder_paths.get_folder_paths("embeddings")


def _tokenizer(width: int) -> Any:
    class Tokenizer(comfy.sd1_clip.SDTokenizer):
        def __init__(self, **arguments: Any):
            super().__init__(**{**arguments, "embedding_size": width})

    class MiniatureTokenizer(comfy.sd1_clip.SD1Tokenizer):
        def __init__(self, embedding_directory: Any = None, tokenizer_data: Any = None):
            super().__init__(embedding_directory, tokenizer_data or {}, tokenizer=Tokenizer)

    return MiniatureTokenizer


def _text_model(config: dict[str, Any]) -> Any:
    class TextModel(comfy.sd1_clip.SDClipModel):
        def __init__(self, device: Any = "cpu", dtype: Any = None, model_options: Any = None):
            super().__init__(
                device=device,
                dtype=dtype,
                textmodel_json_config=dict(config),
                return_projected_pooled=False,
                model_options=model_options or {},
            )

    class MiniatureClip(comfy.sd1_clip.SD1ClipModel):
        def __init__(self, device: Any = "cpu", dtype: Any = None, model_options: Any = None):
            super().__init__(device=device, dtype=dtype, model_options=model_options or {}, clip_model=TextModel)

    return MiniatureClip


class FirstStage(nn.Module):
    """An autoencoder behind the names that the host's VAE calls.

    ``encode``: ``B 3 H W`` in [-1, 1] to ``B 4 H/8 W/8``; ``decode``: back. Latents are unscaled, as the host's are.
    """

    def __init__(self, autoencoder: nn.Module):
        super().__init__()
        self.autoencoder = autoencoder

    def encode(self, pixels: Tensor) -> Tensor:
        return self.autoencoder.encode(pixels)

    def decode(self, latents: Tensor, **_options: Any) -> Tensor:
        return self.autoencoder.decode(latents)


class MiniatureVAE(comfy.sd.VAE):
    """The host's VAE (batching, tiling, memory estimates, offloading) around our own first stage."""

    def __init__(self, autoencoder: nn.Module):
        with WithoutLine("No VAE weights detected"):
            super().__init__(sd={})
        self.first_stage_model = FirstStage(autoencoder).eval().requires_grad_(False)
        self.disable_offload = True  # plain convolutions: loaded as a whole, a megabyte or two
        self.working_dtypes = [torch.float16, torch.float32]
        self.device = management.vae_device()
        self.vae_dtype = management.vae_dtype(self.device, self.working_dtypes)
        self.output_device = management.intermediate_device()
        self.first_stage_model.to(self.vae_dtype)
        if hasattr(management, "archive_model_dtypes"):
            management.archive_model_dtypes(self.first_stage_model)
        offload = management.vae_offload_device()
        self.patcher = Patcher(self.first_stage_model, load_device=self.device, offload_device=offload)
        self.model_size()


class WithoutLine(logging.Filter):
    """Keeps one line of the host out of the log: that a VAE without weights stays empty is wanted here."""

    def __init__(self, text: str):
        super().__init__()
        self.text = text

    def filter(self, record: logging.LogRecord) -> bool:
        return self.text not in record.getMessage()

    def __enter__(self) -> None:
        logging.getLogger().addFilter(self)

    def __exit__(self, *_error: object) -> None:
        logging.getLogger().removeFilter(self)


def preview_colours(autoencoder: nn.Module, scale_factor: float) -> tuple[list[list[float]], list[float]]:
    """Fit ``colour = latent @ factors + bias`` on flat colours, for the host's live previews.

    Returns:
        ``(factors, bias)``: 4 x 3 and 3 numbers; colours in [-1, 1], latents scaled.
    """
    levels = torch.tensor([-0.8, 0.0, 0.8])
    colours = torch.cartesian_prod(levels, levels, levels)  # 27 3
    parameter = next(autoencoder.parameters())
    pixels = colours[:, :, None, None].expand(-1, -1, 64, 64).to(parameter)
    with torch.no_grad():
        latents = autoencoder.encode(pixels)[:, :, 4, 4].float().cpu() * scale_factor  # 27 4
    design = torch.cat([latents, torch.ones(len(latents), 1)], dim=1)
    solution = torch.linalg.lstsq(design, colours).solution  # 5 3
    return solution[:4].tolist(), solution[4].tolist()


def load() -> tuple[Patcher, comfy.sd.CLIP, MiniatureVAE]:
    """MODEL, CLIP and VAE of the shipped miniature.

    Raises:
        LikenessError: the weights are not in the pack's folder.
    """
    from ....miniature import models

    autoencoder = models.load_autoencoder()
    latent = MiniatureLatent(autoencoder.scaling_factor, preview_colours(autoencoder, autoencoder.scaling_factor))
    model = model_from_unet(models.UNET, models.unet_weights(), latent)
    model.set_attachments(NATIVE_SIDE, models.picture_size())
    clip = clip_from_text_encoder(models.TEXT_ENCODER, models.text_encoder_weights())
    return model, clip, MiniatureVAE(autoencoder)
