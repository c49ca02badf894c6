"""Training a persona inside ComfyUI.

Nodes run in inference mode, and what was loaded there cannot take part in autograd. As the host's own training nodes
do, training therefore leaves inference mode and works on copies of the networks, made from the loaded weights (LoRA
included), registered with the host's memory management, and dropped at the end: MODEL and CLIP stay as they were.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import comfy.model_management as management
import comfy.model_patcher
import comfy.model_sampling
import torch
from torch import Tensor, nn

from ....core.errors import bad_input
from ....core.persona.attention_maps import MapRecorder
from ....core.persona.clip import ClipText, JointText
from ....core.persona.text import Contexts
from ....core.schedule import noise_from_velocity
from ..copies import check_weights, checkpointed, exact_attention, load_whole, private_copy, static_patcher
from ..unet import read_unet
from .patch import split_patch
from .text import TokenizerAdapter, encoder_names, inner_encoder

NODE = "Persona Train"


@dataclass
class ComfyDenoiser:
    """``eps(x_t, t, key, value)`` on a private copy of the UNet.

    Attributes:
        velocity: the model predicts v, not noise.
        vector: SDXL's ``1 A`` vector condition.
        addresses: all transformer blocks.
    """

    net: nn.Module
    alphas_cumprod: Tensor
    velocity: bool
    vector: Tensor | None
    addresses: list[tuple]
    dtype: torch.dtype

    def __call__(
        self, noisy: Tensor, timesteps: Tensor, key: Tensor, value: Tensor, look: Any = exact_attention
    ) -> Tensor:
        """See :class:`~likeness.training.persona.request.Denoiser`; ``look`` does the cross-attention."""
        options = {
            "patches": {"attn2_patch": [split_patch(Contexts(key, value))]},
            "patches_replace": {
                "attn1": dict.fromkeys(self.addresses, exact_attention),
                "attn2": dict.fromkeys(self.addresses, look),
            },
            "cond_or_uncond": [0],
        }
        vector = None if self.vector is None else self.vector.to(self.dtype).expand(len(noisy), -1)
        out = self.net(
            noisy.to(self.dtype), timesteps.float(), context=key.to(self.dtype), y=vector, transformer_options=options
        ).float()
        if not self.velocity:
            return out
        return noise_from_velocity(noisy, out, self.alphas_cumprod.to(noisy)[timesteps])

    @torch.no_grad()
    def maps(self, noisy: Tensor, timesteps: Tensor, key: Tensor, value: Tensor, positions: Tensor) -> Tensor:
        """Cross-attention maps ``B h w``."""
        recorder = MapRecorder(positions)

        def record(q: Tensor, k: Tensor, v: Tensor, extra: dict) -> Tensor:
            recorder.add(*(x.unflatten(-1, (extra["n_heads"], -1)).transpose(1, 2) for x in (q, k)))
            return exact_attention(q, k, v, extra)

        self(noisy, timesteps, key, value, record)
        return recorder.mean(noisy.shape[-2:])


@dataclass(frozen=True)
class Judging:
    """What the identity loss needs: the VAE, and the face embedder's network, which moves with the others."""

    vae: Any
    embedder: nn.Module


@dataclass
class ComfyDecoder:
    """Pictures of latents on a private copy of the VAE's decoder, differentiable.

    Attributes:
        unscale: the model's scaled latents -> the VAE's.
        finish: the VAE's output -> [0, 1]; it may work in place.
        memory: bytes that decoding one picture takes by the host's estimate.
    """

    net: nn.Module
    unscale: Callable[[Tensor], Tensor]
    finish: Callable[[Tensor], Tensor]
    memory: int

    def __call__(self, latents: Tensor) -> Tensor:
        """``B 4 h w`` -> ``B 3 H W`` in [0, 1]."""
        return self.finish(self.net.decode(self.unscale(latents.float())).float().clone())


def _decoder(vae: Any, base: Any, size: tuple[int, int], device: torch.device) -> ComfyDecoder:
    """Computed in fp32 (or under the trainer's autocast), whatever type the host runs the VAE in."""
    patcher = static_patcher(vae.patcher, f"{NODE}: vae")
    load_whole(f"{NODE}: vae", patcher)
    whole = patcher.model
    check_weights(whole, f"{NODE}: vae")
    net = private_copy(whole, f"{NODE}: vae", torch.float32, device, getattr(whole, "encoder", None))
    for module in net.modules():
        if getattr(module, "inplace", False):
            module.inplace = False  # what an earlier layer keeps for its gradient must stay
    memory = vae.memory_used_decode((1, 4, size[0] // 8, size[1] // 8), torch.float32)
    return ComfyDecoder(net, base.process_latent_out, vae.process_output, int(memory))


@dataclass
class ComfyTrainingHost:
    """MODEL and CLIP as the trainer takes them; see :func:`training_host`."""

    text: Any
    tokenizer: TokenizerAdapter
    alphas_cumprod: Tensor
    base: dict
    denoiser: ComfyDenoiser
    device: torch.device
    patcher: Any
    decoder: ComfyDecoder | None = None

    @contextmanager
    def open(self, checkpointing: bool = False) -> Iterator[ComfyDenoiser]:
        """Have the copies on the device (a preview may have pushed them off); they are private, nothing is put back."""
        memory = self.decoder.memory if self.decoder else 0
        management.load_models_gpu([self.patcher], memory_required=memory)
        yield self.denoiser

    def decode_image(self, latents: Tensor) -> Tensor:
        """``B 4 h w`` -> ``B 3 H W`` in [0, 1], with gradients.

        Raises:
            LikenessError: the host was made without a VAE.
        """
        if self.decoder is None:
            raise bad_input(f"{NODE}: identity", "no VAE", "one to decode with", "Give the training host a VAE.")
        return self.decoder(latents)


def _velocity(sampling: Any) -> bool:
    if isinstance(sampling, comfy.model_sampling.V_PREDICTION):
        return True
    if isinstance(sampling, comfy.model_sampling.EPS) and hasattr(sampling, "sigmas"):
        return False
    raise bad_input(f"{NODE}: model", type(sampling).__mro__[1].__name__, "SD1.x, SD2.x or SDXL", "Use such a model.")


def _text(clip: Any, device: torch.device) -> ClipText | JointText:
    """Private copies of the text encoders, conditioned on the layer that this CLIP uses."""
    names, parts, pads = encoder_names(clip), [], []
    clip.cond_stage_model.reset_clip_options()
    if clip.layer_idx is not None:
        clip.cond_stage_model.set_clip_options({"layer": clip.layer_idx})
    for name in names:
        encoder = inner_encoder(clip, name)
        check_weights(encoder.transformer, f"{NODE}: clip")
        body = private_copy(encoder.transformer.text_model, f"{NODE}: clip", torch.float32, device)
        skip = 0 if encoder.layer == "last" else -encoder.layer_idx - 1 if encoder.layer_idx < 0 else None
        skip = encoder.num_layers - 1 - encoder.layer_idx if skip is None else skip
        parts.append(ClipText(body, skip=skip, normalised=encoder.layer == "last" or encoder.layer_norm_hidden_state))
        pads.append(encoder.special_tokens.get("pad", encoder.special_tokens["end"]))
    if len(parts) == 1:
        return parts[0]
    return JointText(parts, pads, inner_encoder(clip, names[0]).special_tokens["end"])


def _vector(base: Any, clip: Any, word: str, size: tuple[int, int], device: torch.device) -> Tensor | None:
    if not getattr(base, "adm_channels", 0):
        return None
    _, pooled = clip.encode_from_tokens(clip.tokenize(f"a photo of {word}"), return_pooled=True)
    height, width = size
    with torch.no_grad():
        vector = base.encode_adm(pooled_output=pooled.to(device), width=width, height=height, device=device)
    return vector.clone()


def training_host(
    model: Any,
    clip: Any,
    word: str,
    size: tuple[int, int],
    precision: str,
    checkpointing: bool = False,
    judging: Judging | None = None,
) -> ComfyTrainingHost:
    """Private copies of the UNet and the text encoders. Call it, and train, outside inference mode.

    Args:
        size: height and width of the training pictures (SDXL is told).
        precision: ``fp32`` or ``bf16``, the type the UNet computes in.
        judging: for the identity loss; the VAE's decoder is copied then.

    Raises:
        LikenessError: not a UNet of SD, quantised or partly offloaded weights.
    """
    blocks = read_unet(model, f"{NODE}: model")
    sampling = model.get_model_object("model_sampling")
    velocity = _velocity(sampling)
    patcher, text_patcher = static_patcher(model, f"{NODE}: model"), static_patcher(clip.patcher, f"{NODE}: clip")
    load_whole(f"{NODE}: model", patcher, text_patcher)
    base, device = patcher.model, patcher.load_device
    check_weights(base.diffusion_model, f"{NODE}: model")
    vector = _vector(base, clip, word, size, device)
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    text = _text(clip, device)
    net = private_copy(base.diffusion_model, f"{NODE}: model", dtype, device)
    decoder = _decoder(judging.vae, base, size, device) if judging else None
    judges = [decoder.net, judging.embedder.to(device)] if judging else []
    if checkpointing:
        for network in (net, *judges[:1]):
            checkpointed(network)
    copies = nn.ModuleList([net, *text.modules, *judges])
    registered = comfy.model_patcher.ModelPatcher(copies, device, management.unet_offload_device())
    sigmas = sampling.sigmas.clone().to(device)
    alphas = 1 / (1 + sigmas**2)
    addresses = list(blocks.address.values())
    family = type(base.model_config).__name__
    return ComfyTrainingHost(
        text=text,
        tokenizer=TokenizerAdapter(clip),
        alphas_cumprod=alphas,
        base={"family": family, "context_width": blocks.context_width},
        denoiser=ComfyDenoiser(net, alphas, velocity, vector, addresses, dtype),
        device=device,
        patcher=registered,
        decoder=decoder,
    )
