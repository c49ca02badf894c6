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
from ....training.persona.request import PersonaTraining
from ..copies import check_weights, checkpointed, load_whole, private_copy, static_patcher
from ..unet import read_unet
from .patch import split_patch
from .photos import NODE
from .text import TokenizerAdapter, encoder_names, inner_encoder, written


def exact_attention(q: Tensor, k: Tensor, v: Tensor, extra: dict) -> Tensor:
    """Attention whose gradient is exact and lean; which one the host has picked depends on its flags. ``B N C``."""
    q, k, v = (x.unflatten(-1, (extra["n_heads"], -1)).transpose(1, 2) for x in (q, k, v))  # B H N D
    return nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


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
class Judges:
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


def _decoder(vae: Any, base: Any, side: int, device: torch.device) -> ComfyDecoder:
    """Computed in fp32 (or under the trainer's autocast), whatever type the host runs the VAE in."""
    patcher = static_patcher(vae.patcher, f"{NODE}: vae")
    load_whole(f"{NODE}: vae", patcher)
    whole = patcher.model
    check_weights(whole, f"{NODE}: vae")
    net = private_copy(whole, f"{NODE}: vae", torch.float32, device, getattr(whole, "encoder", None))
    for module in net.modules():
        if getattr(module, "inplace", False):
            module.inplace = False  # what an earlier layer keeps for its gradient must stay
    memory = vae.memory_used_decode((1, 4, side // 8, side // 8), torch.float32)
    return ComfyDecoder(net, base.process_latent_out, vae.process_output, int(memory))


@dataclass
class ComfyTrainingHost:
    """MODEL and CLIP as the trainer takes them; see :func:`training_host`.

    Attributes:
        patcher: of all the copies, by which the host moves them.
        memory: bytes a step takes beside the copies.
    """

    text: Any
    tokenizer: TokenizerAdapter
    alphas_cumprod: Tensor
    base: dict
    denoiser: ComfyDenoiser
    device: torch.device
    patcher: Any
    memory: float
    decoder: ComfyDecoder | None = None

    @contextmanager
    def open(self, checkpointing: bool = False) -> Iterator[ComfyDenoiser]:
        """Have the copies on the device (a preview may have pushed them off); they are private, nothing is put back."""
        load_whole(f"{NODE}: model", self.patcher, memory=self.memory)
        yield self.denoiser

    def decode_image(self, latents: Tensor) -> Tensor:
        """``B 4 h w`` -> ``B 3 H W`` in [0, 1], with gradients.

        Raises:
            LikenessError: the host was made without a VAE.
        """
        if self.decoder is None:
            raise bad_input(f"{NODE}: identity", "no VAE", "one to decode with", "Give the training host a VAE.")
        return self.decoder(latents)


def training_host(
    model: Any, clip: Any, request: PersonaTraining, side: int, judges: Judges | None = None
) -> ComfyTrainingHost:
    """Private copies of the UNet and the text encoders. Call it, and train, outside inference mode.

    The copies are made where the host keeps models that are not in use; :meth:`ComfyTrainingHost.open` brings them to
    the device, for which the host puts the originals aside if it has to.

    Args:
        side: of the training pictures in pixels (SDXL is told).
        judges: for the identity loss; the VAE's decoder is copied then.

    Raises:
        LikenessError: not a UNet of SD, quantised or partly offloaded weights.
    """
    blocks = read_unet(model, f"{NODE}: model")
    sampling = model.get_model_object("model_sampling")
    velocity = predicts_velocity(sampling)
    patcher, text_patcher = static_patcher(model, f"{NODE}: model"), static_patcher(clip.patcher, f"{NODE}: clip")
    load_whole(f"{NODE}: model", patcher, text_patcher)
    base, device, aside = patcher.model, patcher.load_device, management.unet_offload_device()
    check_weights(base.diffusion_model, f"{NODE}: model")
    dtype = torch.bfloat16 if request.precision == "bf16" else torch.float32
    vector = size_vector(base, clip, request.supercategory, side, device)
    text = text_copies(clip, aside)
    net = private_copy(base.diffusion_model, f"{NODE}: model", dtype, aside)
    decoder = _decoder(judges.vae, base, side, aside) if judges else None
    judging = [decoder.net, judges.embedder] if judges else []
    if request.checkpointing:
        for network in (net, *judging[:1]):
            checkpointed(network)
    copies = comfy.model_patcher.ModelPatcher(nn.ModuleList([net, *text.modules, *judging]), device, aside)
    alphas = 1 / (1 + sampling.sigmas.clone().to(device) ** 2)
    return ComfyTrainingHost(
        text=text,
        tokenizer=TokenizerAdapter(clip),
        alphas_cumprod=alphas,
        base={"family": type(base.model_config).__name__, "context_width": blocks.context_width},
        denoiser=ComfyDenoiser(net, alphas, velocity, vector, list(blocks.address.values()), dtype),
        device=device,
        patcher=copies,
        memory=step_memory(request, side) + (decoder.memory if decoder else 0),
        decoder=decoder,
    )


def step_memory(request: PersonaTraining, side: int) -> float:
    """Bytes that a training step keeps for its backward pass, for pictures of ``side`` pixels.

    Counted once on both UNets, MiB for each latent pixel and byte of the training type: SD1.5 0.22, SDXL 0.31; with
    checkpointing 0.01, and what recomputing the largest block takes.
    """
    kept = 0.04 if request.checkpointing else 0.31
    size = 2 if request.precision == "bf16" else 4
    return kept * 2**20 * size * request.batch * (side // 8) ** 2


def predicts_velocity(sampling: Any) -> bool:
    """Whether a model predicts v (True) or noise (False), over Stable Diffusion's table of noise levels.

    Raises:
        LikenessError: it predicts something else, or over other levels (EDM, flow matching, distilled models).
    """
    plain = comfy.model_sampling.ModelSamplingDiscrete.timestep
    if getattr(type(sampling), "timestep", None) is plain:
        if isinstance(sampling, comfy.model_sampling.V_PREDICTION) and not isinstance(
            sampling, comfy.model_sampling.EDM
        ):
            return True
        if isinstance(sampling, comfy.model_sampling.EPS) and not isinstance(
            sampling, (comfy.model_sampling.V_PREDICTION, comfy.model_sampling.X0)
        ):
            return False
    raise bad_input(
        f"{NODE}: model",
        "a model that samples by other rules",
        "SD1.x, SD2.x or SDXL, which predict noise or v over a table of discrete timesteps",
        "Train on such a checkpoint, without a node that changes the model's sampling; a persona learnt there also "
        "speaks to its distilled relatives.",
    )


def text_copies(clip: Any, device: torch.device) -> ClipText | JointText:
    """Private copies of the text encoders, conditioned on the layer that this CLIP uses."""
    names, parts, pads = encoder_names(clip, f"{NODE}: clip"), [], []
    clip.cond_stage_model.reset_clip_options()
    if clip.layer_idx is not None:
        clip.cond_stage_model.set_clip_options({"layer": clip.layer_idx})
    for name in names:
        encoder = inner_encoder(clip, name)
        check_weights(encoder.transformer, f"{NODE}: clip")
        body = private_copy(encoder.transformer.text_model, f"{NODE}: clip", torch.float32, device)
        normalised = encoder.layer == "last" or encoder.layer_norm_hidden_state
        parts.append(ClipText(body, skip=_left_out(encoder), normalised=normalised))
        pads.append(encoder.special_tokens.get("pad", encoder.special_tokens["end"]))
    if len(parts) == 1:
        return parts[0]
    return JointText(parts, pads, inner_encoder(clip, names[0]).special_tokens["end"])


def _left_out(encoder: Any) -> int:
    """How many of an encoder's last blocks are not used (its conditioning layer may be counted from either end)."""
    if encoder.layer == "last":
        return 0
    index = encoder.layer_idx
    return -index - 1 if index < 0 else encoder.num_layers - 1 - index


def size_vector(base: Any, clip: Any, supercategory: str, side: int, device: torch.device) -> Tensor | None:
    """SDXL's vector condition ``1 A``: the pooled text and the picture's size; None for a model that has none."""
    if not getattr(base, "adm_channels", 0):
        return None
    _, pooled = clip.encode_from_tokens(clip.tokenize(f"a photo of {written(supercategory)}"), return_pooled=True)
    with torch.no_grad():
        vector = base.encode_adm(pooled_output=pooled.to(device), width=side, height=side, device=device)
    return vector.clone()
