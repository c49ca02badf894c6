"""Small faces repaired by DIIR with an IDENTITY: the drafts and the judge of DIIR's proof, with MagicID's weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache

import numpy as np
import torch
from torch import Tensor

from lab.evaluation import diir
from lab.evaluation.diir_tables import signed
from lab.evaluation.metrics import summarise
from lab.evaluation.store import Records, paired, values
from lab.people import Person
from likeness.core.diir.request import DiirRequest
from likeness.core.magicid.run import PlacedIdentity
from likeness.formats.magicid import MagicIdWeights
from likeness.hosts.diffusers.diir import PROMPT, FaceTarget
from likeness.hosts.diffusers.pipeline import Pipeline

SECTION = "DIIR"
BEFORE, NOBODY, IDENTITY, REFERENCES = "before", "no identity", "IDENTITY", "MagicFace reference"

Work = Callable[[], dict]
"""A record: what :func:`lab.evaluation.diir.outcome` tells, or nothing where no face is found in a draft."""


@dataclass(frozen=True, eq=False)
class Repairs:
    """Vanilla drafts repaired in every way.

    Args:
        placed: encodes a person.
    """

    pipeline: Pipeline
    weights: MagicIdWeights
    placed: Callable[[Person], PlacedIdentity]
    lab: diir.Lab = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "lab", diir.Lab(self.pipeline))

    def work(self, people: int) -> Iterator[tuple[str, Work]]:
        """Key and computation of every record, person by person."""
        for number in range(people):
            draft = cache(lambda n=number: diir.make_draft(self.lab, n, "vanilla"))
            for variant in (BEFORE, NOBODY, IDENTITY, REFERENCES):
                yield f"{SECTION}/{number}/{variant}", lambda v=variant, d=draft: self._record(d(), v)

    def _record(self, draft: diir.Draft | None, variant: str) -> dict:
        if draft is None:
            return {}
        picture, changed = draft.image, torch.zeros(draft.image.shape[-2:])
        if variant != BEFORE:
            picture, changed = self.repaired(draft, variant)
        return diir.outcome(self.lab, draft, picture, changed)

    def repaired(self, draft: diir.Draft, variant: str) -> tuple[Tensor, Tensor]:
        """The picture ``3 H W`` after the default repair, and where it changed."""
        targets: Mapping[str, Callable[[Person], FaceTarget]] = {
            NOBODY: self.lab.stranger, IDENTITY: self.target, REFERENCES: self.lab.target,
        }
        return diir.repaired(self.lab, draft, DiirRequest(), targets[variant](draft.person))[:2]

    def target(self, person: Person) -> FaceTarget:
        """What a face needs to become ``person`` by MagicID's identity in the UNet."""
        prompt = PROMPT.format(word=person.word)
        return FaceTarget(prompt, identity=self.placed(person), attention=self.weights.attention["unet"])


def table(cases: Mapping[str, Records]) -> str:
    """Case -> variant -> record of the cases :func:`with_faces`, as a table with paired differences."""
    lines = ["| variant | similarity (95%) | change from before, paired (95%) | better | found | seam |",
             "|---|---|---|---|---|---|"]  # fmt: skip
    for variant in (BEFORE, NOBODY, IDENTITY, REFERENCES):
        similar, seams = values(cases, variant, "similarity"), values(cases, variant, "seam")
        gains = paired(cases, variant, BEFORE)
        change = " | " if variant == BEFORE else f"{signed(gains)} | {np.mean([g > 0 for g in gains]):.0%}"
        lines.append(f"| {variant} | {summarise(similar)} | {change} | {np.mean(values(cases, variant, 'found')):.0%} "
                     f"| {f'{np.median(seams):.2f}' if seams else ''} |")  # fmt: skip
    over = [(IDENTITY, other) for other in (NOBODY, REFERENCES)]
    return "\n".join([*lines, "", *(f"- {a} over {b}, paired: {signed(paired(cases, a, b))}" for a, b in over)])


def with_faces(cases: Mapping[str, Records]) -> dict[str, Records]:
    """The cases in whose draft a face was found."""
    return {number: case for number, case in cases.items() if all(case.values())}
