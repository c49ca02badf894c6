"""What Detect Faces does: find, choose, and hand on faces in each form that other nodes take."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass, replace
from typing import Any

import comfy.model_management
import torch
from comfy_api.latest import io, ui
from torch import Tensor

from ....core.errors import LikenessError, bad_input
from ....drawing.faces import draw_overlay
from ....faces import geometry, search, select
from ....faces.find import clean, find_faces, with_landmarks
from ....faces.interface import Face, FaceModels, FaceParser, Faces
from ....faces.masks import head_mask
from .. import images
from . import models as face_models
from .wired import BOXES, NODE, faces_from, to_bounding_boxes

log = logging.getLogger("likeness")

#: Side of the thumbnails of the face table, and faces that get one.
THUMBNAIL, MOST = 96, 100
#: Key of the table among a node's ``ui`` outputs; ``js/face_table.js`` reads it.
OUTPUT = "likeness_faces"


@dataclass(frozen=True, eq=False)
class Detected:
    """The outputs of *Detect Faces*.

    Attributes:
        faces: those chosen.
        overlay: IMAGE. mask: MASK, the heads of each picture's chosen faces. boxes: BOUNDING_BOX.
        report: JSON, with all faces that pass the gates, chosen or not.
        rows: the same for the front end's table, and their thumbnails ``3 S S``.
    """

    faces: Faces
    overlay: Tensor
    mask: Tensor
    boxes: list[list[dict[str, Any]]]
    report: str
    rows: list[dict[str, Any]]
    thumbnails: list[Tensor]


def pictures_of(image: Any) -> Tensor:
    """IMAGE as ``B 3 H W`` in [0, 1] on the CPU, whatever came in.

    Raises:
        LikenessError: no picture.
    """
    if not isinstance(image, Tensor) or image.ndim not in (3, 4) or not 1 <= image.shape[-1] <= 4:
        came = f"a tensor of shape {tuple(image.shape)}" if isinstance(image, Tensor) else "no picture"
        raise bad_input(
            f"{NODE}: image", came, "one picture or a batch of one size, B H W C",
            "Connect an IMAGE; pictures of different sizes go through the node one by one.",
        )  # fmt: skip
    if not image.is_floating_point():
        image = image.float() / 255
    return clean(images.to_torch(image))


def detect(
    image: Any,
    models: FaceModels | None = None,
    found: Any = None,
    gates: select.Gates | None = None,
    order: str = "left to right",
    effort: str = search.AUTO,
) -> Detected:
    """Find the faces of an IMAGE, or take those that another node has found.

    Args:
        models: None: the best for photographs that is installed.
        found: FACE_LANDMARKS or BOUNDING_BOX; face models then only add landmarks to them.
        gates: whose ``region`` is a MASK of any size.

    Raises:
        LikenessError: no picture, values of other pictures, or no face models. Never for want of a face.
    """
    pictures, gates = pictures_of(image), gates or select.Gates()
    gates = replace(gates, region=_region(gates.region, pictures))
    everyone = replace(gates, which="")
    if found is None:
        models = models or face_models.load(face_models.AUTO)
        tick = comfy.model_management.throw_exception_if_processing_interrupted
        faces = find_faces(pictures, models, gates=everyone, order=order, effort=effort, tick=tick)
    else:
        faces = _wired(found, pictures, models)
        rows = enumerate(faces.pictures)
        faces = replace(faces, pictures=tuple(select.select(row, everyone, order, i) for i, row in rows))
    if models is not None and faces.count:
        faces = with_landmarks(pictures, faces, models)
    rows = enumerate(faces.pictures)
    chosen = replace(faces, pictures=tuple(select.chosen(row, gates.which, i, f"{NODE}: which") for i, row in rows))
    return _outputs(pictures, faces, chosen, models)


def _region(mask: Tensor | None, pictures: Tensor) -> Tensor | None:
    """The MASK of where to look, of the size of the pictures; one for all, or one each.

    Raises:
        LikenessError: another number of masks.
    """
    if mask is None:
        return None
    region = torch.nan_to_num(images.mask_to_torch(mask, source=f"{NODE}: where"))
    if len(region) not in (1, len(pictures)):
        raise bad_input(
            f"{NODE}: where", f"{len(region)} masks for {len(pictures)} pictures", "one for all, or one each",
            "Connect a single mask, or batch as many masks as pictures.",
        )  # fmt: skip
    if not min(*region.shape, *pictures.shape):
        return None
    return images.resize(region.cpu(), tuple(pictures.shape[-2:]), "nearest-exact")


def _wired(found: Any, pictures: Tensor, models: FaceModels | None) -> Faces:
    faces = faces_from(found, pictures)
    if models is None or faces.source != BOXES:
        return faces
    rows = zip(pictures, faces.pictures, strict=True)
    looked = tuple(tuple(search.look_inside(i, face, models.detector) or face for face in row) for i, row in rows)
    return replace(faces, pictures=looked, provider=models.name)


def _outputs(pictures: Tensor, faces: Faces, chosen: Faces, models: FaceModels | None) -> Detected:
    rows = list(zip(pictures, faces.pictures, chosen.pictures, strict=True))
    overlay = torch.stack([draw_overlay(*row) for row in rows]) if rows else pictures
    parser = _parser(models) if chosen.count else None
    masks = torch.zeros(len(pictures), *pictures.shape[-2:])
    for mask, (picture, _, kept) in zip(masks, rows, strict=True):
        for face in kept:
            torch.maximum(mask, head_mask(picture, face, parser), out=mask)
    boxes, table = to_bounding_boxes(chosen.pictures), _rows(faces, chosen)
    thumbnails = [_thumbnail(picture, face) for picture, row, _ in rows for face in row]
    return Detected(chosen, images.to_comfy(overlay), masks, boxes, _report(faces, table), table, thumbnails[:MOST])


def _parser(models: FaceModels | None) -> FaceParser | None:
    """None where there is none, or its weights cannot be read: ellipses take its place."""
    try:
        return models.make_parser() if models and models.make_parser else None
    except LikenessError as error:
        log.warning("%s: heads are not parsed: %s", NODE, error)
        return None


def _rows(faces: Faces, chosen: Faces) -> list[dict[str, Any]]:
    return [
        {
            "picture": i, "number": face.number, "chosen": face in kept, "size": round(max(face.size), 1),
            "tilt": round(face.tilt, 1), "score": round(face.score, 3), "box": [round(at, 1) for at in face.box],
            "landmarks": 0 if face.landmarks is None else len(face.landmarks if face.dense is None else face.dense),
        }
        for i, (row, kept) in enumerate(zip(faces.pictures, chosen.pictures, strict=True), start=1)
        for face in row
    ]  # fmt: skip


def _report(faces: Faces, rows: list[dict[str, Any]]) -> str:
    head = {"found by": faces.provider, "in": faces.source, "pictures": len(faces), "faces": len(rows)}
    return json.dumps({**head, "table": rows}, indent=1)


def _thumbnail(picture: Tensor, face: Face) -> Tensor:
    """A face of ``3 H W``, upright and with some of its surroundings: ``3 S S``."""
    (x, y), half = face.centre, max(face.size) / 2
    box = torch.tensor([[x - half, y - half, x + half, y + half]])
    return geometry.crop_square(picture[None], box, THUMBNAIL, 0.35, face.tilt)[0]


def face_table(detected: Detected) -> dict[str, list[dict[str, Any]]]:
    """The node's ``ui``: a row per face, its thumbnail saved to the host's temporary folder."""
    if not detected.rows:
        return {OUTPUT: []}
    batch = images.to_comfy(torch.stack(detected.thumbnails))
    saved = ui.ImageSaveHelper.save_images(batch, "likeness_face", io.FolderType.temp, None)
    told = [{**row, "note": f"{row['tilt']:.0f}\u00b0"} for row in detected.rows]
    return {OUTPUT: [{**row, "before": dict(one)} for row, one in zip(told, saved, strict=False)]}
