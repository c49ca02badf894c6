"""Who says what of a picture: faces, pose, caption and head, each by the first provider that has an answer."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from likeness.core.errors import LikenessError, bad_input
from likeness.faces import keypoints, providers
from likeness.faces.find import find_faces, with_landmarks
from likeness.faces.interface import Face, FaceModels, Faces, with_embeddings
from likeness.faces.keypoints import BODY, FACE, LEFT_EYE, NOSE, RIGHT_EYE, Person, Pose
from likeness.faces.landmarks import openpose_face
from likeness.faces.masks import head_mask
from likeness.miniature.faces import miniature_models

from . import truth
from .captions import Captioner
from .places import KEYPOINTS, TEXT
from .reading import Photo
from .settings import Settings
from .wholebody import WholeBody, available

#: A pose drawn on a canvas of another shape than the picture is somebody else's.
SAME_SHAPE = 0.05

PoseOf = Callable[[Photo, Sequence[Face]], Pose | None]
CaptionOf = Callable[[Photo], str]


@dataclass(frozen=True, eq=False)
class Annotators:
    """The providers of one worker, by name, in the order in which they are asked."""

    faces: Callable[[Photo], Faces]
    vectors: Callable[[Photo, Sequence[Face]], tuple[Face, ...]]
    pose: dict[str, PoseOf]
    caption: dict[str, CaptionOf]
    head: Callable[[Photo, Face], tuple[str, Tensor]]


def make(settings: Settings) -> Annotators:
    """Load what the settings ask for.

    Raises:
        LikenessError: weights that are asked for are not there.
    """
    models = loaded_once(face_models(settings))
    pose: dict[str, PoseOf] = {
        "truth": lambda photo, faces: truth.pose(photo),
        "sidecar": lambda photo, faces: sidecar_pose(photo),
        "landmarks": lambda photo, faces: head_pose(photo, faces),
    }
    if "wholebody" in settings.pose and available(settings.models):
        body = WholeBody(settings.models)
        pose["wholebody"] = lambda photo, faces: body.pose(photo)
    caption: dict[str, CaptionOf] = {"truth": truth.caption, "sidecar": sidecar_caption}
    if "model" in settings.caption and settings.captioner:
        caption["model"] = Captioner(Path(settings.captioner)).caption
    return Annotators(
        functools.partial(faces_of, models, settings),
        functools.partial(vectors, models),
        {name: pose[name] for name in settings.pose if name in pose},
        {name: caption[name] for name in settings.caption if name in caption},
        functools.partial(head_of, models, settings.mask),
    )


def check(settings: Settings) -> None:
    """Raise what would stop every worker, before any is started."""
    make(settings)


def describe(settings: Settings) -> list[str]:
    """Who would be asked, and who cannot be; one line each.

    Raises:
        LikenessError: weights that are asked for are not there.
    """
    made = make(settings)
    lines = [f"faces: {face_models(settings).name if settings.faces != 'truth' else 'truth'}"]
    for what, asked, there in (("pose", settings.pose, made.pose), ("caption", settings.caption, made.caption)):
        missing = [f"{name} (no model)" for name in asked if name not in there]
        lines.append(f"{what}: {', '.join([*there, *missing])}")
    return [*lines, f"mask: {settings.mask}"]


# --- faces ------------------------------------------------------------------------------------------------------------


def face_models(settings: Settings) -> FaceModels:
    """The detector, and what goes with it, of the settings; auto: the best that is there."""
    if settings.faces in ("miniature", "truth"):
        return miniature_models()
    where = providers.Folders.below(Path(settings.models or "models"))
    return providers.load(providers.best(where) if settings.faces == "auto" else settings.faces, where)


def loaded_once(models: FaceModels) -> FaceModels:
    """The same models, whose weights are read when they are first asked for and never again."""
    parts = ("make_embedder", "make_landmarker", "make_parser")
    made = {part: getattr(models, part) for part in parts}
    return replace(models, **{part: functools.cache(make) for part, make in made.items() if make is not None})


def faces_of(models: FaceModels, settings: Settings, photo: Photo) -> Faces:
    """The faces of a photo, the largest first, with landmarks."""
    image = photo.pixels()
    height, width = image.shape[-2:]
    if settings.faces == "truth":
        found = Faces((truth.faces(photo) or (),), height, width, "truth")
    else:
        found = with_landmarks(image[None], find_faces(image[None], models, effort=settings.effort), models)
    largest = sorted(found.pictures[0], key=lambda face: face.area, reverse=True)
    return Faces((tuple(largest),), height, width, found.provider)


def vectors(models: FaceModels, photo: Photo, faces: Sequence[Face]) -> tuple[Face, ...]:
    """The faces with their identity vectors."""
    return with_embeddings(models.make_embedder(), photo.pixels(), faces)


def head_of(models: FaceModels, who: str, photo: Photo, face: Face) -> tuple[str, Tensor]:
    """Who told it, and the head of a face, ``H W`` in [0, 1].

    Raises:
        LikenessError: a parser is asked for and has no weights.
    """
    known = truth.head(photo, face) if who in ("auto", "truth") else None
    if known is not None:
        return "truth", known
    make_parser = models.make_parser if who in ("auto", "parser") else None
    if who == "parser" and make_parser is None:
        raise bad_input("IDZoom: --mask", "parser, whose weights are not there",
                        "facexlib/parsing_bisenet.pth below --models",
                        "Put them there, or take ellipse.")  # fmt: skip
    parser = make_parser() if make_parser else None
    return ("parser" if parser else "ellipse"), head_mask(photo.pixels(), face, parser)


# --- pose -------------------------------------------------------------------------------------------------------------


def sidecar_pose(photo: Photo) -> Pose | None:
    """POSE_KEYPOINT beside the picture, as pose nodes save it, at the picture's size; None where there is none."""
    try:
        poses = keypoints.parse(json.loads(photo.sidecars[KEYPOINTS]), "IDZoom: pose sidecar")
    except (KeyError, ValueError, LikenessError):  # none, or a JSON of something else
        return None
    width, height = photo.image.size
    pose = poses[0] if poses else None
    if pose is None or not pose.people or min(pose.width, pose.height) < 1:
        return None
    if abs(pose.width * height / (pose.height * width) - 1) > SAME_SHAPE:
        return None
    zoom = torch.tensor([width / pose.width, height / pose.height])
    return Pose(tuple(Person(one.body * zoom, one.face * zoom) for one in pose.people), height, width)


def head_pose(photo: Photo, faces: Sequence[Face]) -> Pose | None:
    """The points of heads alone, from the faces' landmarks: for portraits that show no body."""
    people = [_head_of(face) for face in faces if face.landmarks is not None]
    return Pose(tuple(people), photo.image.height, photo.image.width) if people else None


def _head_of(face: Face) -> Person:
    body = torch.full((BODY, 2), torch.nan)
    body[[RIGHT_EYE, LEFT_EYE, NOSE]] = face.landmarks[:3].float()
    dense = openpose_face(face.dense) if face.dense is not None else None
    return Person(body, torch.full((FACE, 2), torch.nan) if dense is None else dense.float())


# --- caption ----------------------------------------------------------------------------------------------------------


def sidecar_caption(photo: Photo) -> str:
    """The text beside a picture, on one line; empty where there is none."""
    return " ".join(photo.sidecars.get(TEXT, b"").decode("utf-8", "replace").split())
