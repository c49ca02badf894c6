"""One picture: looked at, filtered, annotated, and written as the members of a sample."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from likeness.drawing.pose import OPENPOSE, draw_people
from likeness.drawing.sheets import to_picture
from likeness.faces.geometry import crop_square
from likeness.faces.interface import Face
from likeness.faces.keypoints import Pose

from .annotations import keypoint_of, landmarks_of
from .annotators import Annotators
from .filters import perceptual_hash, sharpness
from .places import Place
from .reading import Dropped, Photo, read_photo
from .settings import CAPTION, POSE, Settings

#: Side of the face picture, and what it holds beyond the face's box, as a share of its longer side.
FACE_SIDE, FACE_MARGIN = 256, 0.35
FAILED = "failed"


@dataclass(frozen=True)
class Outcome:
    """What became of one picture.

    Attributes:
        reason: why it is dropped; empty where it is not.
        detail: the same in numbers or in the words of who found out.
        bits: its perceptual hash; empty where it was not reached.
        facts: what was measured, for the manifest.
        members: ending -> bytes of the sample's files.
    """

    reason: str = ""
    detail: str = ""
    bits: bytes = b""
    facts: dict[str, Any] = field(default_factory=dict)
    members: dict[str, bytes] = field(default_factory=dict)


def examine(place: Place, annotators: Annotators, settings: Settings) -> Outcome:
    """A picture's sample, or why it is dropped. Duplicates are told later, among those that are not."""
    try:
        photo = read_photo(place, settings)
    except Dropped as drop:
        return Outcome(drop.reason, _text(drop.detail))
    facts: dict[str, Any] = {"width": photo.image.width, "height": photo.image.height}
    try:
        members = annotate(photo, place, annotators, settings, facts)
        return Outcome(bits=perceptual_hash(photo.image), facts=facts, members=members)
    except Dropped as drop:
        return Outcome(drop.reason, _text(drop.detail), facts=facts)
    except Exception as error:  # a network that fails on one picture must not cost the others; see engine.Failures
        return Outcome(FAILED, _text(f"{type(error).__name__}: {error}"), facts=facts)


def _text(words: str) -> str:
    """Words as UTF-8 can hold them: file names need not be text."""
    return words.encode("utf-8", "backslashreplace").decode("utf-8")


def annotate(
    photo: Photo, place: Place, annotators: Annotators, settings: Settings, facts: dict[str, Any]
) -> dict[str, bytes]:
    """The members of a photo's sample; what is measured on the way goes into ``facts``.

    Raises:
        Dropped: it does not pass a filter, or lacks what a sample needs.
    """
    facts["sharpness"] = round(sharpness(photo.image), 2)
    if facts["sharpness"] < settings.sharpness:
        raise Dropped("blurred", f"sharpness {facts['sharpness']}")
    found = annotators.faces(photo)
    check_faces(found.pictures[0], settings)
    pose_by, pose = _pose(photo, found.pictures[0], annotators, settings)
    caption_by, words = _caption(photo, annotators, settings)
    faces = annotators.vectors(photo, found.pictures[0])
    heads = [annotators.head(photo, face) for face in faces]
    facts |= {
        "faces": len(faces), "face_models": found.provider, "embedder": faces[0].embedder, "pose": pose_by,
        "caption": caption_by, "mask": heads[0][0], "source": place.name,
    }  # fmt: skip
    members = {**_image(photo), **_faces(photo, faces, [mask for _, mask in heads])}
    members["landmarks.json"] = _json(landmarks_of(faces, photo.image.width, photo.image.height))
    if pose is not None:
        members["skeleton.png"] = _png(draw_people(pose.people, pose.height, pose.width, OPENPOSE))
        members["pose.json"] = _json(keypoint_of(pose))
    if words:
        members["caption.txt"] = words.encode()
    members["json"] = _json(facts)
    return members


def check_faces(faces: Sequence[Face], settings: Settings) -> None:
    """Raise :class:`Dropped` unless there are faces, not too many, and none too small."""
    if not faces:
        raise Dropped("no face")
    if len(faces) > settings.most_faces:
        raise Dropped("too many faces", f"{len(faces)}")
    side = min(min(face.size) for face in faces)
    if side < settings.least_face:
        raise Dropped("small face", f"{side:.0f} pixels")


def _pose(
    photo: Photo, faces: Sequence[Face], annotators: Annotators, settings: Settings
) -> tuple[str, Pose | None]:
    for name, pose_of in annotators.pose.items():
        pose = pose_of(photo, faces)
        if pose is not None and pose.people:
            return name, pose
    if POSE not in settings.optional:
        raise Dropped("no pose", f"asked: {', '.join(annotators.pose) or 'nobody'}")
    return "", None


def _caption(photo: Photo, annotators: Annotators, settings: Settings) -> tuple[str, str]:
    for name, caption_of in annotators.caption.items():
        words = caption_of(photo)
        if words:
            return name, words
    if CAPTION not in settings.optional:
        raise Dropped("no caption", f"asked: {', '.join(annotators.caption) or 'nobody'}")
    return "", ""


# --- members ----------------------------------------------------------------------------------------------------------


def _image(photo: Photo) -> dict[str, bytes]:
    """The JPEG that it came as, untouched, or a PNG that loses nothing."""
    if photo.original is not None:
        return {"image.jpg": photo.original}
    return {"image.png": _encoded(photo.image)}


def _faces(photo: Photo, faces: Sequence[Face], heads: Sequence[Tensor]) -> dict[str, bytes]:
    """Face picture and head mask of each, ``face.png`` the largest and ``face.2.png`` on; all vectors ``F D``."""
    image = photo.pixels()
    members: dict[str, bytes] = {}
    for i, (face, head) in enumerate(zip(faces, heads, strict=True)):
        number = "" if i == 0 else f"{i + 1}."
        crop = crop_square(image[None], torch.tensor([face.box]), FACE_SIDE, FACE_MARGIN)[0]
        members[f"face.{number}png"] = _png(crop)
        members[f"mask.{number}png"] = _png(head.expand(1, *head.shape))
    stack = torch.stack([face.embedding.float().cpu() for face in faces]).numpy()
    buffer = io.BytesIO()
    np.save(buffer, stack, allow_pickle=False)
    return {**members, "embedding.npy": buffer.getvalue()}


def _json(value: object) -> bytes:
    return json.dumps(value).encode()


def _png(pixels: Tensor) -> bytes:
    """``1 H W`` or ``3 H W`` in [0, 1]."""
    return _encoded(to_picture(pixels.expand(3, -1, -1)).convert("L") if len(pixels) == 1 else to_picture(pixels))


def _encoded(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=3)
    return buffer.getvalue()
