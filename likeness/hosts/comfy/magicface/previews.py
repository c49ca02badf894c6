"""MagicFace's previews: what runs have recorded, found again by the latent they made, and drawn as pictures."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

import torch

from ....core.magicface.record import Recorder
from ....drawing.magicface import draw_correspondence, draw_maps, draw_patches, note, sheet
from .. import images

log = logging.getLogger("likeness")

#: Runs whose previews a record keeps: enough for the branches of one graph that share a model.
KEPT_RUNS = 4


@dataclass(frozen=True)
class RecordedRun:
    """One finished run: the latents it made (CPU) and its recorder."""

    latents: torch.Tensor
    recorder: Recorder


@dataclass
class MagicFaceRecord:
    """A handle that Apply hands out before sampling and that runs fill; Preview reads it after sampling.

    Attributes:
        concepts: the concepts' names, in the order of the map's labels.
        names, pictures: of every reference, in order; several may show one concept. Pictures are ``1 3 H W``.
        patches: points of the generated picture to follow, (y, x) in [0, 1]. enabled: False records nothing.
        runs: the last :data:`KEPT_RUNS` finished runs; a run that was interrupted or failed leaves nothing.
    """

    concepts: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    pictures: tuple[torch.Tensor, ...] = ()
    patches: tuple[tuple[float, float], ...] = ()
    enabled: bool = True
    runs: list[RecordedRun] = field(default_factory=list)

    def begin(self) -> Recorder | None:
        """A fresh recorder for one run."""
        return Recorder(patches=self.patches) if self.enabled else None

    def add(self, latents: torch.Tensor, recorder: Recorder | None) -> None:
        """Keep a finished run."""
        if recorder is not None and isinstance(latents, torch.Tensor):
            self.runs.append(RecordedRun(latents.detach().float().cpu(), recorder))
            del self.runs[:-KEPT_RUNS]

    def find(self, latents: torch.Tensor) -> Recorder | None:
        """The recorder of the run that made ``latents``; the latest one when they were edited; None without a run."""
        wanted = latents.detach().float().cpu()
        for run in reversed(self.runs):
            same_shape = run.latents.shape == wanted.shape
            if same_shape and torch.allclose(run.latents, wanted, rtol=1e-2, atol=1e-2, equal_nan=True):
                return run.recorder
        if self.runs:
            log.warning("MagicFace Preview: no run of this record made the given latent; showing the latest run.")
            return self.runs[-1].recorder
        return None


def draw(
    record: MagicFaceRecord | None, latents: torch.Tensor, image: torch.Tensor | None, columns: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Sheet of maps, correspondences and patch attention of the run that made ``latents``, as IMAGEs.

    Args:
        record: from MagicFace Apply, None where that is bypassed. latents: the sampler's output.
        image: the decoded picture (IMAGE), or None. columns: maps per row of the sheet.
    """
    recorder = record.find(latents) if record else None
    if recorder is None:
        empty = note("Nothing was recorded: connect references, and switch 'record' on in MagicFace Options.")
        return (images.to_comfy(empty),) * 3
    generated = None if image is None else images.to_torch(image).cpu()
    drawn = (
        sheet(draw_maps(recorder.steps, generated, record.concepts), columns),
        draw_correspondence(recorder.correspondence, generated, record.pictures, record.names),
        draw_patches(recorder.patches_seen, generated, record.pictures, record.names),
    )
    return tuple(images.to_comfy(pictures) for pictures in drawn)
