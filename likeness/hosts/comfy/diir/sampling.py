"""Inversion and restoration through the host's guider, so that whatever stands on the model acts in the crop too."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import comfy.model_management as management
import comfy.samplers
import torch
from torch import Tensor

from ....core.diir.features import FeatureCache, FeatureFusion
from ....core.diir.inversion import Progress, Trajectory, invert, noised
from ....core.diir.request import DiirRequest
from ....core.diir.restore import restore

#: Conditionings of a run beside the host's positive and negative: plain text for the inversion, and none at all.
INVERSION, NOTHING = "inversion", "nothing"


@dataclass(frozen=True)
class Chunk:
    """Crops that share a person and a prompt, and so a run.

    Attributes:
        latents: ``Z0`` as the VAE gives it, ``B C h w``. mask: ``B 1 h w`` in [0, 1].
        positive, negative: CONDITIONING of the restoration. inversion: plain text for the inversion.
        seeds: one a crop.
    """

    latents: Tensor
    mask: Tensor
    positive: list
    negative: list
    inversion: list
    seeds: Sequence[int]


def run(
    model: Any,
    chunk: Chunk,
    request: DiirRequest,
    progress: Progress | None = None,
    tell: Callable[[str], None] | None = None,
) -> Tensor:
    """Invert and restore one chunk.

    Args:
        model: ModelPatcher, with identity on it where there is one.
        progress: told after every step. tell: told what the report should say.

    Returns:
        Restored latents ``B C h w`` in the VAE's scale.
    """
    sigmas = ddim_sigmas(model.get_model_object("model_sampling"), request.steps)
    guider = DiirGuider(model)
    guider.inner_set_conds({"positive": chunk.positive, "negative": chunk.negative, INVERSION: chunk.inversion})
    guider.set_cfg(request.guidance)
    sampler = DiirSampler(request, chunk.mask, chunk.seeds, progress)
    blank = torch.zeros_like(chunk.latents)
    restored = guider.sample(blank, chunk.latents, sampler, sigmas, disable_pbar=True, seed=chunk.seeds[0])
    if tell is not None and sampler.note:
        tell(sampler.note)
    return restored


def ddim_sigmas(sampling: Any, steps: int) -> Tensor:
    """``T + 1`` falling noise levels at DDIM's own timesteps, 1, 1 + N/T, 1 + 2N/T ... of N, the last level 0.

    The host's "ddim_uniform" takes one level more where N is no multiple of T.
    """
    table = sampling.sigmas.float().cpu()
    stride = max(1, len(table) // steps)
    levels = table[1::stride][:steps].flip(0)
    return torch.cat([levels, levels.new_zeros(1)])


class DiirGuider(comfy.samplers.CFGGuider):
    """The host's guider with one more call: the model without guidance, and without what belongs to the prompt."""

    def plain(self, x: Tensor, sigma: Tensor, model_options: dict[str, Any]) -> Tensor:
        """Clean estimate ``B C h w`` of the inversion's text.

        Its rows stand where the negative prompt's do, so that identity patches, which act on the positive rows, leave
        them alone. Functions that shape guidance are not asked: there is none.
        """
        if NOTHING not in self.conds:
            self.conds[NOTHING] = []
            # the host spreads control meant for both guidance rows over every conditioning
            for cond in self.conds[INVERSION]:
                cond.pop("control", None)
        conds = [self.conds[NOTHING], self.conds[INVERSION]]
        return comfy.samplers.calc_cond_batch(self.inner_model, conds, x, sigma, model_options)[1]


class DiirSampler(comfy.samplers.Sampler):
    """Alg. 2 of MagicID as one of the host's samplers.

    Args:
        request: what the user asked for. mask: ``B 1 h w``. seeds: of the fast mode's noise, one a crop.
        progress: told after every step.

    Attributes:
        note: what the report should say of the run.
    """

    def __init__(self, request: DiirRequest, mask: Tensor, seeds: Sequence[int], progress: Progress | None) -> None:
        self.request, self.mask, self.seeds, self.progress = request, mask, seeds, progress
        self.note = ""

    def sample(
        self,
        model_wrap: DiirGuider,
        sigmas: Tensor,
        extra_args: dict[str, Any],
        callback: Any,
        noise: Tensor,
        latent_image: Tensor | None = None,
        denoise_mask: Tensor | None = None,
        disable_pbar: bool = False,
    ) -> Tensor:
        """Restored latents in the model's own scale; ``latent_image`` is ``Z0`` there."""
        options, seed = extra_args["model_options"], extra_args.get("seed")
        mask = self.mask.to(latent_image.device)
        features: FeatureFusion | None = None

        def with_features() -> dict[str, Any]:
            return options if features is None else _with_output(options, features, latent_image.shape[0])

        def plain(x: Tensor, sigma: float) -> Tensor:
            management.throw_exception_if_processing_interrupted()
            return model_wrap.plain(x, _levels(x, sigma), with_features())

        def guided(x: Tensor, sigma: float) -> Tensor:
            management.throw_exception_if_processing_interrupted()
            return model_wrap(x, _levels(x, sigma), model_options=with_features(), seed=seed)

        if self.request.mode == "exact" and self.request.keep_style == "paper":
            cache = FeatureCache(self.request.cache, feature_room(model_wrap.model_patcher, latent_image.shape))
            features = FeatureFusion(mask, plain, cache)
        trajectory = self._trajectory(plain, latent_image, sigmas, features)
        keep_style = self.request.keep_style != "off"
        out = restore(guided, trajectory, mask, self.request.start, keep_style, features, self.progress)
        if features is not None and self.request.cache == "auto":
            self.note = _where_features_went(features, latent_image.device)
        return out

    def _trajectory(
        self, plain: Callable, latents: Tensor, sigmas: Tensor, features: FeatureFusion | None
    ) -> Trajectory:
        levels = sigmas.tolist()
        if self.request.mode == "fast":
            return noised(latents, levels, noise_of(self.seeds, latents.shape[1:]))
        record = None if features is None else features.recording
        return invert(plain, latents, levels, self.request.corrections, self.progress, record)


def _where_features_went(features: FeatureFusion, device: torch.device) -> str:
    """In words, where that was not the device alone."""
    if features.again:
        return f"features of {features.again} steps found no room and were computed again"
    if features.cache.places[:1] != ["device"] and device.type != "cpu":
        return "features found no room on the graphics card and went to main memory"
    return ""


def _levels(x: Tensor, sigma: float) -> Tensor:
    return x.new_full((x.shape[0],), sigma)


def noise_of(seeds: Sequence[int], shape: Sequence[int]) -> Tensor:
    """Unit Gaussian noise, ``B C h w``, each row from a seed of its own: a crop has the same alone and in a batch."""
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    return torch.stack([torch.randn(tuple(shape), generator=generator) for generator in generators])


def _with_output(model_options: dict[str, Any], features: FeatureFusion, batch: int) -> dict[str, Any]:
    """A copy of the options in which self-attention outputs are shown to the fusion, after every other patch."""

    def patch(n: Tensor, extra: dict[str, Any]) -> Tensor:
        chunks = len(extra.get("cond_or_uncond") or ())
        if n.shape[0] != chunks * batch:
            return n  # rows that other packs have changed are not ours to tell apart
        block = (*extra["block"], extra["block_index"])
        return features.output(block, n, [face for _ in range(chunks) for face in range(batch)])

    inner = model_options.get("transformer_options", {})
    patches = inner.get("patches", {})
    patches = {**patches, "attn1_output_patch": [*patches.get("attn1_output_patch", []), patch]}
    return {**model_options, "transformer_options": {**inner, "patches": patches}}


def feature_room(model: Any, shape: Sequence[int]) -> dict[str, int | None]:
    """Bytes that kept features may take on the device and in main memory, after what the model itself needs."""
    needed = model.model.memory_required([2 * shape[0], *shape[1:]])
    reserved = management.minimum_inference_memory()
    device = management.get_free_memory(model.load_device) - needed - reserved
    host = management.get_free_memory(torch.device("cpu")) / 2
    return {"device": max(0, int(device)), "host": max(0, int(host))}


def rows_that_fit(model: Any, shape: Sequence[int], most: int) -> int:
    """How many crops of latent size ``C h w`` one run may hold, 1 to ``most``.

    The host is first asked to make room for them; what it could free is what they get.
    """
    needed = model.model.memory_required([2 * most, *shape])
    management.load_models_gpu([model], memory_required=needed)
    free = management.get_free_memory(model.load_device)
    return int(min(most, max(1, most * free // max(1, needed))))
