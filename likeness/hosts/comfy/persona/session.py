"""Personas inside ComfyUI: the prompt carries them, a wrapper on the model speaks them at the right time.

The conditioning that Apply returns is that of the supercategory prompt, and carries a :class:`PersonaPlan`. When
sampling starts, the plan's contexts for the schedule are encoded in one batch; each model call finds its rows by the
conditioning's id and its time by the noise level, and enters the UNet with a copy of the options in which our
cross-attention patch stands first. Nothing is kept on the model, and nothing outlives a run but a small cache.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import groupby
from typing import Any

import torch
from comfy.patcher_extension import WrappersMP

from ....core.errors import bad_input
from ....core.persona.stages import StagedContexts, precompute
from ....core.persona.text import Contexts, check_placeholders
from ....core.schedule import sigma_table, timesteps_of
from ..compat import uncompiled
from ..rows import BATCH_KEY, Batch, Conditioning, rows_of, text_of
from ..text import TOKEN_MAPS_KEY
from .patch import with_contexts
from .shares import prompt_shares
from .text import (
    NODE,
    NamedPersona,
    Personas,
    encode_at,
    join,
    mark_prompt,
    plain_text,
    text_widths,
)

__all__ = ["NamedPersona", "Personas", "apply", "install", "join"]

KEY = "likeness_persona"


# --- the plan ---------------------------------------------------------------------------------------------------------


@dataclass
class PersonaPlan:
    """What a conditioning carries: how to encode its prompt at any time. Contexts are kept for the last schedule."""

    clip: Any
    prompt: str
    personas: Personas
    early: torch.Tensor
    cache: dict[tuple, StagedContexts] = field(default_factory=dict)

    def contexts(self, timesteps: Sequence[int]) -> StagedContexts:
        """Contexts of a schedule, encoded in one batch the first time it is asked for."""
        key = tuple(timesteps)
        if key not in self.cache:
            marked = mark_prompt(self.clip, self.prompt, self.personas)
            stages = self.personas[0].persona.stages
            early = Contexts(self.early, self.early)
            staged = precompute(
                lambda t: encode_at(self.clip, marked, self.personas, t), early, stages, timesteps, midpoints=True
            )
            self.cache.clear()
            self.cache[key] = staged
        return self.cache[key]

    @cached_property
    def shares(self) -> torch.Tensor | None:
        """How the tokens that are spoken stand for those of the plain prompt; see :func:`prompt_shares`."""
        return prompt_shares(self.clip, self.prompt, self.personas)


def apply(model: Any, clip: Any, personas: Personas, prompt: str) -> tuple[Any, list]:
    """MODEL and CONDITIONING for a prompt with the personas' placeholders.

    Raises:
        LikenessError: a placeholder is missing or doubled, or a persona belongs to another base.
    """
    if not personas:
        raise bad_input(f"{NODE}: personas", "none", "at least one persona", "Connect Persona Load or Persona Train.")
    check_placeholders(prompt, [p.placeholder for p in personas], f"{NODE}: prompt")
    widths = text_widths(clip)
    for item in personas:
        item.persona.check_base(widths, f"{NODE}: clip")
    conditioning = clip.encode_from_tokens_scheduled(clip.tokenize(plain_text(prompt, personas)))
    carried = [
        [context, {**extra, KEY: PersonaPlan(clip, prompt, personas, context)}] for context, extra in conditioning
    ]
    return install(model), carried


def install(model: Any) -> Any:
    """A clone of the model that listens for personas; one wrapper serves any number of them."""
    patched = model.clone()
    for kind, wrapper in (
        (WrappersMP.OUTER_SAMPLE, outer_sample),
        (WrappersMP.CALC_COND_BATCH, calc_cond_batch),
        (WrappersMP.APPLY_MODEL, apply_model),
    ):
        patched.remove_wrappers_with_key(kind, KEY)
        patched.add_wrapper_with_key(kind, KEY, wrapper)
    return patched


# --- sampling ---------------------------------------------------------------------------------------------------------


def timestep_reader(sampling: Any) -> Callable[[torch.Tensor], list[int]]:
    """From noise levels to training timesteps, with the model's own table; a model without one gets SD's."""
    table = getattr(sampling, "sigmas", None)
    if table is not None and hasattr(sampling, "log_sigmas"):
        scale, table = 1000 / len(table), table.cpu()
        return lambda sigmas: [min(999, round(t * scale)) for t in timesteps_of(sigmas.cpu(), table)]
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    standard = sigma_table((1 - betas).cumprod(0))
    return lambda sigmas: timesteps_of(sigmas.cpu(), standard)


class Speaker:
    """A conditioning that carries a plan: its contexts over the schedule, put where its text stands.

    Other nodes may have worked on the conditioning since Persona Apply. What they appended (Conditioning Concat, by
    which PhotoMaker's prompt joins) stays behind the persona's words. What they changed (Average, Multiply, Zero Out)
    stays too; the persona's words are added to it by as much as is left of the plain ones: the projection of the text
    that is given on the one that was encoded, exact for Multiply and Zero Out, nearly 1 for Average.

    Attributes:
        staged: contexts over the schedule. length: tokens of the given text. share: how much is left of the plan's
        own text at its beginning, or None where it is untouched. shares: see :func:`prompt_shares`.
    """

    def __init__(self, plan: PersonaPlan, given: torch.Tensor, schedule: Sequence[int]) -> None:
        self.staged = plan.contexts(schedule)
        self.given = given
        self.length = given.shape[1]
        early = plan.early.float()
        begin = given[:, : early.shape[1]].to(early)
        shorter = begin.shape[1:] != early.shape[1:]  # another text has taken its place: the persona's stands whole
        untouched = shorter or bool((begin == early).all())
        self.share = None if untouched else float((begin * early).sum(dim=(1, 2)).mean() / early.square().sum())
        more = max(0, self.length - early.shape[1])
        self.shares = None if plan.shares is None else torch.block_diag(plan.shares, torch.eye(more))

    def speaks(self, timestep: int) -> bool:
        """Whether the persona's words stand in the text at a timestep."""
        return self.staged.index(timestep) is not None

    def contexts(self, own: torch.Tensor, timestep: int) -> Contexts:
        """What the rows ``B L C`` of this conditioning, possibly repeated by the host, say at a timestep."""
        early = self.staged.early.key.to(own)
        own = own[:, : self.length]
        begin, rest = own[:, : early.shape[1]], own[:, early.shape[1] :]
        return Contexts(*(torch.cat([self._words(begin, early, x.to(own)), rest], 1) for x in self.staged.at(timestep)))

    def _words(self, begin: torch.Tensor, early: torch.Tensor, spoken: torch.Tensor) -> torch.Tensor:
        if self.share is None:
            return spoken.expand(begin.shape[0], -1, -1)
        begin, early, spoken = _equally_long(begin, early, spoken)
        return begin + self.share * (spoken - early)


def _equally_long(*texts: torch.Tensor) -> list[torch.Tensor]:
    """``B L C`` contexts, each repeated to a common length: attention does not change (the host does the same)."""
    length = math.lcm(*(text.shape[1] for text in texts))
    return [text.repeat(1, length // text.shape[1], 1) for text in texts]


#: Of every row of a call whose persona it is.
Speakers = tuple[Speaker | None, ...]


class Session:
    """One sampling run: a speaker for every conditioning that carries a plan, by the conditioning's id."""

    def __init__(self, guider: Any, sigmas: torch.Tensor) -> None:
        self.read = timestep_reader(guider.model_patcher.get_model_object("model_sampling"))
        schedule = self.read(sigmas[sigmas > 0])
        if bool((sigmas == 0).any()):
            schedule.append(0)  # the schedule comes to its end
        given = [c for conds in guider.conds.values() for c in conds if c.get("cross_attn") is not None]
        carrying = [c for c in given if isinstance(c.get(KEY), PersonaPlan)]
        self.guider = guider
        self.own: dict[int, tuple[torch.Tensor, bool]] = {}
        self.speakers = {c["uuid"]: Speaker(c[KEY], c["cross_attn"], schedule) for c in carrying}
        self.last: tuple | None = None
        self.heard: tuple[torch.Tensor, int] | None = None

    def timestep(self, sigma: torch.Tensor) -> int:
        """The training timestep of a call's noise levels; the device is waited for once a call."""
        if self.heard is None or self.heard[0] is not sigma:
            self.heard = sigma, self.read(sigma.flatten()[:1])[0]
        return self.heard[1]

    def of_rows(self, options: Mapping[str, Any], x: torch.Tensor, context: torch.Tensor) -> Speakers | None:
        """Who each row of a call belongs to, told by its conditioning; None where no row has a persona."""
        count = context.shape[0]
        if options.get(BATCH_KEY) is None:  # another pack calls without the host: chunk by chunk, as the host would
            uuids = options.get("uuids") or [None]
            found = [self.speakers.get(uuid) for uuid in uuids for _ in range(count // len(uuids))]
        else:
            found = [self._of_entry(row.conditioning) for row in rows_of(options, x, context) or ()]
        return tuple(found) if len(found) == count and any(found) else None

    def _of_entry(self, entry: Conditioning | None) -> Speaker | None:
        """The speaker of a conditioning; none where the host has copied it into another list, whose text it has now."""
        speaker = None if entry is None else self.speakers.get(entry.get("uuid"))
        text = None if speaker is None else text_of(entry)
        if text is None:
            return speaker
        if id(text) not in self.own:
            given = speaker.given
            same = text is given or (text.shape == given.shape and torch.equal(text.to(given), given))
            self.own[id(text)] = text, same
        return speaker if self.own[id(text)][1] else None

    def joined(self, speakers: Speakers, context: torch.Tensor, sigma: torch.Tensor) -> Contexts:
        """Key and value contexts of all rows of a call.

        Rows of other conditionings keep their own; where lengths differ all are repeated to a common one.
        """
        timestep = self.timestep(sigma)
        known = (timestep, tuple(map(id, speakers)), context.shape, context.dtype, context.device)
        if self.last is None or self.last[0] != known or self.last[1] is not context:
            self.last = (known, context, _join(self.speaking(speakers, timestep), context, timestep))
        return self.last[2]

    def token_maps(self, speakers: Speakers, sigma: torch.Tensor) -> list[torch.Tensor | None]:
        """For each row the shares of its tokens in those of the prompt; None for rows of plain words."""
        speaking = self.speaking(speakers, self.timestep(sigma))
        return [None if speaker is None else speaker.shares for speaker in speaking]

    @staticmethod
    def speaking(speakers: Speakers, timestep: int) -> list[Speaker | None]:
        """Those that speak at a timestep."""
        return [speaker if speaker is not None and speaker.speaks(timestep) else None for speaker in speakers]


def _join(speaking: Sequence[Speaker | None], context: torch.Tensor, timestep: int) -> Contexts:
    parts: list[Contexts] = []
    start = 0
    for speaker, same in groupby(speaking):
        own = context[start : start + len(list(same))]
        start += len(own)
        parts.append(Contexts(own, own) if speaker is None else speaker.contexts(own, timestep))
    return Contexts(*(torch.cat(_equally_long(*texts)) for texts in zip(*parts, strict=True)))


def outer_sample(executor: Any, noise: torch.Tensor, latent_image: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
    """Encode the plans' contexts before the model is loaded, sample, drop them whatever happens."""
    guider, sigmas = executor.class_obj, args[1] if len(args) > 1 else kwargs["sigmas"]
    options = guider.model_options.setdefault("transformer_options", {})
    try:
        session = Session(guider, sigmas)
        if not session.speakers:
            return executor(noise, latent_image, *args, **kwargs)
        options[KEY] = session
        with uncompiled(guider.model_options, NODE):
            return executor(noise, latent_image, *args, **kwargs)
    finally:
        options.pop(KEY, None)


def calc_cond_batch(
    executor: Any, model: Any, conds: Sequence[Any], x: torch.Tensor, t: torch.Tensor, options: dict[str, Any]
) -> Any:
    """Note what the host was asked for, by which the rows of its calls are told."""
    inner = options.get("transformer_options", {})
    session: Session | None = inner.get(KEY)
    if session is not None:
        batch = Batch.of(conds, x, getattr(session.guider, "conds", {}), inner)
        options = {**options, "transformer_options": {**inner, BATCH_KEY: batch}}
    return executor(model, conds, x, t, options)


def apply_model(executor: Any, x: torch.Tensor, t: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    """Put the personas' contexts into one model call; without any the call passes untouched."""
    names = ("c_concat", "c_crossattn", "control", "transformer_options")
    given = {**dict(zip(names, args, strict=False)), **{k: kwargs.pop(k) for k in names if k in kwargs}}
    options, context = given.get("transformer_options") or {}, given.get("c_crossattn")
    session: Session | None = options.get(KEY)
    speakers = None if session is None or context is None else session.of_rows(options, x, context)
    if speakers is not None:
        contexts, token_maps = session.joined(speakers, context, t), session.token_maps(speakers, t)
        given["transformer_options"] = {**with_contexts(options, contexts), TOKEN_MAPS_KEY: token_maps}
    return executor(x, t, *(given.get(name) for name in names[:3]), given.get("transformer_options") or {}, **kwargs)
