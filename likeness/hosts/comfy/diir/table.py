"""The face table under the node: what a run hands to the front end."""

from __future__ import annotations

from typing import Any

import torch
from comfy_api.latest import io, ui
from torch import Tensor

from .. import images
from .report import FaceReport, Outcome

#: Key of the table among a node's ``ui`` outputs; ``js/face_table.js`` reads it.
OUTPUT = "likeness_faces"
#: Faces that get pictures in the table.
MOST = 100


def table(outcome: Outcome) -> dict[str, list[dict[str, Any]]]:
    """The node's ``ui``: a row per face, its thumbnails saved to the host's temporary folder."""
    saved = _saved([picture for pair in outcome.thumbnails[:MOST] for picture in pair if picture is not None])
    rows = []
    for face, (_, after) in zip(outcome.faces[:MOST], outcome.thumbnails, strict=False):
        rows.append(_row(face) | {"before": saved.pop(0), "after": saved.pop(0) if after is not None else None})
    return {OUTPUT: rows}


def _row(face: FaceReport) -> dict[str, Any]:
    return {
        "picture": face.picture,
        "number": face.number,
        "size": round(face.size, 1),
        "person": face.person or "",
        "before_similarity": face.similarity_before,
        "similarity": face.similarity_after,
        "chosen": face.repaired,
        "note": "" if face.repaired else face.done,
    }


def _saved(pictures: list[Tensor]) -> list[dict[str, str]]:
    """Pictures ``3 s s`` as PNG files the front end can ask for."""
    if not pictures:
        return []
    batch = images.to_comfy(torch.stack(pictures))
    return [dict(one) for one in ui.ImageSaveHelper.save_images(batch, "likeness_face", io.FolderType.temp, None)]
