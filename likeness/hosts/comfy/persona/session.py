"""One sampling run with personas: the text of each row is exchanged for what its personas say at that noise level.

When sampling starts, the contexts of the run's schedule are encoded in one batch of the text encoder. Each model call
finds out whose text its rows have and enters the UNet with a copy of the options in which our cross-attention patch
stands first. One scalar is read back from the device a call: the noise level.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ....core.persona.stages import StagedContexts
from ....core.persona.text import Contexts
from ..rows import Conditioning, text_of
from ..text import TOKEN_MAPS_KEY
from ..wrappers import ModelCall, RunStart, Session, System
from .patch import with_contexts
from .plan import PersonaPlan, plan_of
from .text import NODE
from .timesteps import timestep_reader

KEY = "likeness_persona"


class Voice:
    """A conditioning that carries a plan: its contexts over the schedule, put where its text stands.

    Other nodes may have worked on the conditioning since Persona Apply. What they appended (Conditioning Concat, by
    which PhotoMaker's prompt joins) stays behind the persona's words. What they changed (Average, Multiply, Zero Out)
    stays too; the persona's words are added to it by as much as is left of the plain ones: the projection of the text
    that is given on the one that was encoded, exact for Multiply and Zero Out, nearly 1 for Average.

    Attributes:
        given: ``1 L C``, the conditioning's text. staged: contexts over the schedule.
        remaining: how much is left of the plan's own text at its beginning, or None where it is untouched.
        token_map: see :func:`~.token_map.prompt_token_map`; what was appended stands for itself.
    """

    def __init__(self, plan: PersonaPlan, given: torch.Tensor, timesteps: Sequence[int]) -> None:
        self.given, self.staged = given, plan.contexts(timesteps)
        self._beside: dict[tuple, tuple[StagedContexts, torch.Tensor | None]] = {}
        early = plan.early.float()
        begin = given[:, : early.shape[1]].to(early)
        shorter = begin.shape[1:] != early.shape[1:]  # another text has taken its place: the persona's stands whole
        untouched = shorter or bool((begin == early).all())
        self.remaining = None if untouched else float((begin * early).sum(dim=(1, 2)).mean() / early.square().sum())
        more = max(0, given.shape[1] - early.shape[1])
        self.token_map = None if plan.token_map is None else torch.block_diag(plan.token_map, torch.eye(more))

    def speaks(self, timestep: int) -> bool:
        """Whether the persona's words stand in the text at a timestep."""
        return self.staged.index(timestep) is not None

    def contexts(self, own: torch.Tensor, timestep: int) -> Contexts:
        """What the rows ``B L C`` of this conditioning, possibly repeated by the host, say at a timestep."""
        staged, _ = self.beside(own)
        early = staged.early.key
        own = own[:, : self.given.shape[1]]
        begin, rest = own[:, : early.shape[1]], own[:, early.shape[1] :]
        return Contexts(*(torch.cat([self._words(begin, early, x), rest], 1) for x in staged.at(timestep)))

    def beside(self, like: torch.Tensor) -> tuple[StagedContexts, torch.Tensor | None]:
        """Contexts and token map on a call's device, brought there once a run: at each step it would be waited for."""
        key = (like.device, like.dtype)
        if key not in self._beside:
            token_map = None if self.token_map is None else self.token_map.to(like.device)
            self._beside[key] = (self.staged.to(like), token_map)
        return self._beside[key]

    def _words(self, begin: torch.Tensor, early: torch.Tensor, spoken: torch.Tensor) -> torch.Tensor:
        if self.remaining is None:
            return spoken.expand(begin.shape[0], -1, -1)
        begin, early, spoken = _equally_long(begin, early, spoken)
        return begin + self.remaining * (spoken - early)


def _equally_long(*texts: torch.Tensor) -> list[torch.Tensor]:
    """``B L C`` contexts, each repeated to a common length: attention does not change (the host does the same)."""
    length = math.lcm(*(text.shape[1] for text in texts))
    return [text.repeat(1, length // text.shape[1], 1) for text in texts]


#: Of every row of a call whose voice it has.
Voices = tuple[Voice | None, ...]


class PersonaSession(Session):
    """One sampling run: a voice for every conditioning that carries a plan, by the conditioning's id."""

    def __init__(self, start: RunStart) -> None:
        self.read = timestep_reader(start.model.get_model_object("model_sampling"), f"{NODE}: model")
        levels = start.sigmas.tolist()
        timesteps = self.read([sigma for sigma in levels if sigma > 0])
        if 0 in levels:
            timesteps.append(0)  # the schedule comes to its end
        entries = [entry for conds in start.guider.conds.values() for entry in conds]
        carrying = [(entry, plan_of(entry)) for entry in entries if entry.get("cross_attn") is not None]
        self.voices = {e["uuid"]: Voice(plan, e["cross_attn"], timesteps) for e, plan in carrying if plan is not None}
        self.own: dict[int, tuple[torch.Tensor, bool]] = {}
        self.last: tuple | None = None
        self.heard: tuple[torch.Tensor, int] | None = None

    def close(self) -> None:
        """Drop the contexts."""
        self.voices, self.own, self.last, self.heard = {}, {}, None, None

    def call(self, call: ModelCall) -> torch.Tensor:
        """Put the personas' contexts into one model call; without any the call passes untouched."""
        voices = None if call.context is None else self.of_rows(call)
        if voices is None:
            return call.forward()
        timestep = self.timestep(call.sigma)
        speaking = tuple(v if v is not None and v.speaks(timestep) else None for v in voices)
        if not any(speaking):
            return call.forward()
        token_maps = [None if voice is None else voice.beside(call.context)[1] for voice in speaking]
        contexts = self.joined(speaking, call.context, timestep)
        return call.forward(options={**with_contexts(call.options, contexts), TOKEN_MAPS_KEY: token_maps})

    def timestep(self, sigma: torch.Tensor) -> int:
        """The training timestep of a call's noise levels; the device is waited for once a call."""
        if self.heard is None or self.heard[0] is not sigma:
            self.heard = sigma, self.read(sigma.flatten()[:1].tolist())[0]
        return self.heard[1]

    def of_rows(self, call: ModelCall) -> Voices | None:
        """Whose voice each row of a call has, told by its conditioning; None where no row has one."""
        count = len(call.context)
        if call.batch is None:  # another pack calls without the host: chunk by chunk, as the host would
            uuids = call.options.get("uuids") or [None]
            found = [self.voices.get(uuid) for uuid in uuids for _ in range(count // len(uuids))]
        else:
            found = [self._of_entry(row.conditioning) for row in call.rows() or ()]
        return tuple(found) if len(found) == count and any(found) else None

    def _of_entry(self, entry: Conditioning | None) -> Voice | None:
        """The voice of a conditioning; none where the host has copied it into another list, whose text it has now."""
        voice = None if entry is None else self.voices.get(entry.get("uuid"))
        text = None if voice is None else text_of(entry)
        if text is None:
            return voice
        if id(text) not in self.own:
            given = voice.given
            same = text is given or (text.shape == given.shape and torch.equal(text.to(given), given))
            self.own[id(text)] = text, same
        return voice if self.own[id(text)][1] else None

    def joined(self, speaking: Voices, context: torch.Tensor, timestep: int) -> Contexts:
        """Key and value contexts of all rows ``B L C`` of a call; kept for further calls with the same text."""
        known = (timestep, tuple(map(id, speaking)), context.shape, context.dtype, context.device)
        if self.last is None or self.last[0] != known or self.last[1] is not context:
            self.last = (known, context, _join(speaking, context, timestep))
        return self.last[2]


def _join(speaking: Voices, context: torch.Tensor, timestep: int) -> Contexts:
    """Silent rows keep their text; where lengths differ all are repeated to a common one."""
    parts: list[Contexts] = []
    start = 0
    for voice, same in itertools.groupby(speaking):
        own = context[start : start + len(list(same))]
        start += len(own)
        parts.append(Contexts(own, own) if voice is None else voice.contexts(own, timestep))
    return Contexts(*(torch.cat(_equally_long(*texts)) for texts in zip(*parts, strict=True)))


class PersonaSystem(System):
    """What a model that listens for personas keeps: nothing; the conditionings bring it all."""

    key = KEY
    node = NODE

    def open(self, start: RunStart) -> PersonaSession | None:
        """Encode the plans' contexts before the model is loaded."""
        entries: list[Mapping[str, Any]] = [entry for conds in start.guider.conds.values() for entry in conds]
        if not any(map(plan_of, entries)) or not bool((start.sigmas > 0).any()):
            return None
        session = PersonaSession(start)
        return session if session.voices else None
