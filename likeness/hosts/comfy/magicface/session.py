"""MagicFace inside ComfyUI: wrappers on a cloned model, a state per sampling run, nothing left behind.

Wrappers by key are all that node time adds. When sampling starts a :class:`Session` is made and put into that run's
own model options; each model call finds it there, runs the reference path if needed, and enters the UNet with a copy
of the options in which our attention stands before whatever other packs have put there. When sampling ends, also by
an error or an interrupt, the session is closed.
"""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from uuid import uuid4

import torch
from comfy import model_management as management
from comfy.ldm.modules import attention as host_attention

from ....core.blocks import BlockId
from ....core.errors import LikenessError, bad_input
from ....core.magicface.record import Recorder
from ....core.magicface.request import MagicFaceRequest
from ....core.magicface.run import Capture, MagicFaceRun, ReferenceBatch, ReferencesCaptured
from ....core.masks import level_grid, token_grid
from ..rows import Batch, Conditioning, Row, text_of
from ..text import TOKEN_MAPS_KEY
from ..unet import Replace, UNetBlocks, with_replaces
from ..wrappers import ModelCall, RunStart, Session, System
from .previews import MagicFaceRecord
from .references import model_conds

log = logging.getLogger("likeness")

NODE = "MagicFace Apply"
GUIDANCE_EPSILON = 1e-6
UNPLACED = (
    "MagicFace: it cannot be told which parts of the picture another patch samples; regions and semantic maps are off "
    "in them."
)
UNFIT = (
    "MagicFace leaves a pass alone in level %s: another patch (token merging, tiling, a reference pass) hands it "
    "%d rows of %d tokens."
)


def _attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, extra: Mapping[str, Any]) -> torch.Tensor:
    """The host's own attention, called just as its unpatched block calls it. All ``B N C``."""
    return host_attention.optimized_attention(
        q, k, v, extra["n_heads"], attn_precision=extra.get("attn_precision"), transformer_options=extra
    )


def _begins_with(given: torch.Tensor | None, context: torch.Tensor) -> bool:
    """Whether a conditioning's text is ``context``, or begins with it (concatenated prompts)."""
    if given is None or given.shape[1] < context.shape[1] or given.shape[2:] != context.shape[2:]:
        return False
    return given is context or torch.equal(given[:1, : context.shape[1]].to(context), context[:1])


class MagicFaceSession(Session):
    """One sampling run: the core's run, and the host objects it needs."""

    def __init__(self, patch: MagicFacePatch, start: RunStart, recorder: Recorder | None):
        guider, sigmas = start.guider, start.sigmas.tolist()
        self.blocks = patch.blocks
        self.record = patch.record
        self.recorder = recorder
        self.contexts = patch.contexts
        self.device = guider.model_patcher.load_device
        self.base: Any = None
        self.options: Mapping[str, Any] = {}
        self.extra: Mapping[str, Any] = {}
        self.conds: dict[tuple, dict[str, Any]] = {}
        self.prompts: dict[Any, tuple[torch.Tensor | None, bool]] = {}
        self.warned: set[str] = set()
        self.run = MagicFaceRun(
            dataclasses.replace(patch.request, recorder=recorder),
            patch.blocks.layout,
            sigmas=sigmas,
            model_key=patch.weights_key(guider),
            references=self.capture,
            attention=lambda q, k, v, heads: _attend(q, k, v, {**self.extra, "n_heads": heads}),
            device=self.device,
            noising=self.noise,
            reserve=patch.reserve(start),
        )

    def finish(self, latents: torch.Tensor) -> None:
        """The run's previews count."""
        self.record.add(latents, self.recorder)

    def close(self) -> None:
        """Drop everything; safe to call twice."""
        self.run.close()
        self.base = None
        self.options = self.extra = {}
        self.conds.clear()

    def noise(self, latent: torch.Tensor, noise: torch.Tensor, sigma: float) -> torch.Tensor:
        """The model's own forward process: another one for flow matching than for variance-preserving models."""
        level = latent.new_full((1,), sigma, dtype=torch.float32)
        return self.base.model_sampling.noise_scaling(level, noise.to(latent, copy=True), latent)

    def capture(self, batch: ReferenceBatch, capture: Capture) -> None:
        """The reference path: a plain forward of the same model, up to the last chosen block.

        Its options hold our own capture and nothing else: no wrappers, no patches of other packs, no ControlNet. What
        other packs did to the weights (LoRA) is in the weights.
        """
        latents = batch.latents.to(self.device, non_blocking=True)
        sigma = torch.full((latents.shape[0],), batch.sigma, device=self.device, dtype=torch.float32)
        makers = {self.blocks.address[block]: _capturing(block, capture) for block in capture.blocks}
        clean = {
            "cond_or_uncond": [0] * len(latents),
            "uuids": [uuid4() for _ in latents],  # rows that no other pack knows
            "sigmas": sigma[:1],
            "sample_sigmas": self.options.get("sample_sigmas", sigma),
        }
        try:
            self.base.apply_model(
                latents,
                sigma,
                transformer_options=with_replaces(clean, {"attn1": makers}),
                **self._reference_conds(batch, latents),
            )
        except ReferencesCaptured:
            return

    def _reference_conds(self, batch: ReferenceBatch, latents: torch.Tensor) -> dict[str, Any]:
        key = tuple(id(item) for item in batch.references)
        if key not in self.conds:
            self.conds[key] = model_conds(self.base, latents, batch.references)
        return self.conds[key]

    def call(self, call: ModelCall) -> torch.Tensor:
        """One model call with our attention in it."""
        if "multigpu_thread_device" in call.options:
            raise bad_input(
                f"{NODE}: model",
                "a model spread over several GPUs",
                "a model on one GPU",
                "Bypass the node that spreads it; both halves of a step share what is read from the references.",
            )
        x = call.x
        self.base, self.options, self.device = call.model, call.options, x.device
        rows = call.rows()
        if rows is None:
            self._warn("rows", "MagicFace leaves a call alone: another patch has made %d rows of it.", x.shape[0])
            return call.forward()
        if any(row.frame is None for row in rows):
            self._warn(
                "frames",
                "MagicFace: it cannot be told which parts of the picture another patch samples; regions "
                "and semantic maps are off there.",
            )
        with self.run.begin_call(
            float(call.sigma.flatten()[0]),
            [row.conditional for row in rows],
            tuple(x.shape[-2:]),
            [row.image for row in rows],
            [row.frame for row in rows],
            self._prompt_rows(call.batch, rows),
        ) as mine:
            if not mine.self_blocks and not mine.cross_blocks:
                return call.forward()
            return call.forward(options=with_replaces(call.options, self._makers(mine, x.shape)))

    def _makers(self, call: Any, shape: Sequence[int]) -> dict[str, dict]:
        reached: set[BlockId] = set()
        address = self.blocks.address
        return {
            "attn1": {address[b]: self._self_replace(call, b, shape, reached) for b in call.self_blocks},
            "attn2": {address[b]: self._cross_replace(call, b, shape, reached) for b in call.cross_blocks},
        }

    def _self_replace(self, call: Any, block: BlockId, shape: Sequence[int], reached: set[BlockId]) -> Callable:
        def make(found: Replace | None) -> Replace:
            def replace(q, k, v, extra, *args, **kwargs):
                self.extra = extra

                def plain():
                    return found(q, k, v, extra, *args, **kwargs) if found is not None else _attend(q, k, v, extra)

                tokens = q.shape[1]
                if not self._fits(block, shape, q, extra) or k.shape[0] != shape[0] or k.shape[1] < tokens:
                    self._warn(block.level_name, UNFIT, block.level_name, q.shape[0], q.shape[1])
                    return plain()
                reached.add(block)
                longer = k.shape[1] != tokens  # another patch has appended keys of its own
                other_patch = plain if found is not None or longer else None
                return call.self_attention(block, q, k[:, :tokens], v[:, :tokens], extra["n_heads"], other_patch)

            return replace

        return make

    def _fits(self, block: BlockId, shape: Sequence[int], q: torch.Tensor, extra: Mapping[str, Any]) -> bool:
        """Whether the queries are the layer's own tokens, one for each of its grid, for the rows of this call."""
        layer = extra.get("activations_shape", (0, 0, 0, 0))[-2:]
        if q.shape[0] != shape[0] or layer[0] * layer[1] not in (0, q.shape[1]):
            return False
        try:
            token_grid(tuple(shape[-2:]), self.blocks.layout.factor(block), q.shape[1])
        except LikenessError:
            return False
        return True

    def _cross_replace(self, call: Any, block: BlockId, shape: Sequence[int], reached: set[BlockId]) -> Callable:
        def make(found: Replace | None) -> Replace:
            def replace(q, k, v, extra, *args, **kwargs):
                if block in reached and q.shape[0] == k.shape[0] == shape[0]:
                    token_maps = extra.get(TOKEN_MAPS_KEY)
                    known = token_maps if token_maps is not None and len(token_maps) == shape[0] else None
                    call.cross_attention(block, q, k, extra["n_heads"], known)
                return found(q, k, v, extra, *args, **kwargs) if found is not None else _attend(q, k, v, extra)

            return replace

        return make

    def _prompt_rows(self, batch: Batch | None, rows: Sequence[Row]) -> list[bool]:
        """Per row whether its text is the prompt in which the concepts were looked up.

        Where no positive conditioning is, the prompt has been edited since, and is taken for the prompt itself.
        """
        lists = zip(batch.conditional, batch.entries, strict=True) if batch else ()
        positive = [entry for conditional, entries in lists if conditional for entry in entries]
        if any(self._is_prompt(entry) for entry in positive):
            return [row.conditioning is not None and self._is_prompt(row.conditioning) for row in rows]
        if positive:
            self._warn(
                "prompt",
                "MagicFace: the sampler's positive conditioning is not the prompt that MagicFace Apply has encoded. "
                "The concepts are taken to stand at the same words. If they do not: connect MagicFace Apply's "
                "conditioning, or (beside Persona Apply) give both nodes the same prompt, here with the plain word.",
            )
        return [True] * len(rows)

    def _is_prompt(self, entry: Conditioning) -> bool:
        text = text_of(entry)
        known = self.prompts.get(id(text))
        if known is None or known[0] is not text:
            known = self.prompts[id(text)] = (text, any(_begins_with(text, context) for context in self.contexts))
        return known[1]

    def _warn(self, what: str, message: str, *values: Any) -> None:
        """Say something once a run."""
        if what not in self.warned:
            self.warned.add(what)
            log.warning(message, *values)

    def guide(self, args: Mapping[str, Any]) -> torch.Tensor:
        """S-CFG in the host's list of post-CFG functions: only the guidance part of the result is exchanged."""
        scale, cond, uncond = args["cond_scale"], args["cond_denoised"], args["uncond_denoised"]
        if abs(scale - 1.0) < GUIDANCE_EPSILON:
            return args["denoised"]  # the host has not computed an unconditional prediction
        plain = uncond + (cond - uncond) * scale
        return args["denoised"] + (self.run.guide(cond, uncond, scale) - plain)


def _capturing(block: BlockId, capture: Capture) -> Callable:
    def make(_found: Replace | None) -> Replace:
        def replace(q, k, v, extra):
            capture.store(block, k, v)
            return _attend(q, k, v, extra)

        return replace

    return make


@dataclasses.dataclass(frozen=True)
class MagicFacePatch(System):
    """What the wrappers know; it outlives runs unchanged.

    Attributes:
        request: what the user asked for. contexts: the encoded prompt, ``1 L C``, of every entry.
        blocks: the model's structure. record: where previews go.
        weights_key: of a guider, tells apart models whose plain forwards differ.
    """

    key = "likeness_magicface"
    node = NODE

    request: MagicFaceRequest
    contexts: tuple[torch.Tensor, ...]
    blocks: UNetBlocks
    record: MagicFaceRecord
    weights_key: Callable[[Any], str]

    def open(self, start: RunStart) -> MagicFaceSession | None:
        """The run's session; None where no reference would change anything."""
        _check_finite(start.noise, start.latent)
        session = MagicFaceSession(self, start, self.record.begin())
        if not session.run.enabled:
            return None  # no reference that counts, or a schedule without a step
        if self.request.scfg:
            later = start.options.get("sampler_post_cfg_function", [])
            start.options["sampler_post_cfg_function"] = [session.guide, *later]
        return session

    def reserve(self, start: RunStart) -> int:
        """Bytes that the cache leaves free on the device: what the host itself keeps for a forward."""
        model, shape = start.model, start.noise.shape
        forward = model.model.memory_required([2 * self.counted_rows(model, shape), *shape[1:]])
        return int(max(forward, management.minimum_inference_memory()))

    def counted_rows(self, model: Any, shape: Sequence[int]) -> int:
        """The forward's rows, and as many as take the memory of one noise level's keys and values.

        The host counts two rows per picture; the reference forward has one per reference.
        """
        rows = max(shape[0], -(-len(self.request.references) // 2))
        return rows + math.ceil(self._key_bytes(model) / model.model.memory_required([1, *shape[1:]]))

    def _key_bytes(self, model: Any) -> int:
        """What the references' keys and values of one noise level take, all tokens counted."""
        unet, layout = model.get_model_object("diffusion_model"), self.blocks.layout
        size = 0
        for block in layout.select(self.request.layers):
            factor = layout.factor(block)
            width = unet.model_channels * unet.channel_mult[factor.bit_length() - 1]
            grids = (level_grid(reference.latent.shape[-2:], factor) for reference in self.request.references)
            size += 2 * width * sum(rows * columns for rows, columns in grids)
        return size * management.dtype_size(model.model_dtype())


def _check_finite(noise: torch.Tensor, latent: torch.Tensor) -> None:
    for name, tensor in (("noise", noise), ("latent_image", latent)):
        if not bool(torch.isfinite(tensor).all()):
            raise bad_input(
                f"MagicFace (sampler): {name}",
                "NaN or infinite values",
                "finite numbers",
                "Check the node that makes it; a half-precision VAE is the usual cause.",
            )
