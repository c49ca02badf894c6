"""Where the person is in Persona Train's pictures: the connected mask, CLIPSeg's, or an ellipse round the face."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from ...core.errors import bad_input
from ...faces import facenet
from ...faces.interface import FaceModels, largest_face
from ...training.photos import check_mask, clipseg_mask, ellipse_mask
from . import faces as face_models
from . import images
from .persona_training import NODE

CLIPSEG = "clipseg-rd64-refined"
#: Supercategories that stand for a face: for these an ellipse is made without being asked for.
FACE_WORDS = frozenset(
    ("face", "head", "portrait", "person", "people", "human", "man", "woman", "boy", "girl", "child", "kid", "baby",
     "guy", "lady", "adult", "teenager")
)  # fmt: skip


def masks_of(mask: Tensor | None, pictures: Sequence[Tensor], word: str, faces: FaceModels | None) -> list[Tensor]:
    """One mask ``1 H W`` per picture ``3 H W``.

    Args:
        mask: what is connected, as MASK: one for all pictures or one each.
        faces: face models that are connected.

    Raises:
        LikenessError: an empty mask, another number of masks, or none and nothing to make one with.
    """
    if mask is None:
        return [check_mask(made, f"{NODE}: mask made for {word!r}") for made in _made(pictures, word, faces)]
    masks = images.mask_to_torch(mask, source=f"{NODE}: mask")
    if len(masks) not in (1, len(pictures)):
        raise bad_input(
            f"{NODE}: mask", f"{len(masks)} masks for {len(pictures)} pictures", "one for each, or one for all", ""
        )
    masks = masks.expand(len(pictures), -1, -1, -1)
    return [check_mask(images.resize(mask[None], picture.shape[-2:], "bilinear")[0], f"{NODE}: mask")
            for mask, picture in zip(masks, pictures, strict=True)]  # fmt: skip


def _made(pictures: Sequence[Tensor], word: str, faces: FaceModels | None) -> list[Tensor]:
    folder = _clipseg_folder()
    if folder is not None:
        return [clipseg_mask(picture.cpu(), word, folder) for picture in pictures]
    if faces is None and is_face_word(word) and facenet.installed():
        faces = face_models.load(face_models.FACENET)
    if faces is not None:
        return [face_mask(picture, faces) for picture in pictures]
    raise bad_input(
        f"{NODE}: mask",
        "no mask",
        f"a mask of the {word}, face models, or the folder models/clipseg/{CLIPSEG}",
        "Paint a mask in the picture's mask editor, connect Face Models to have an ellipse round the face, or put "
        "CIDAS/clipseg-rd64-refined there to have the mask made.",
    )


def _clipseg_folder() -> Path | None:
    import folder_paths

    folders = (Path(folder_paths.models_dir) / name / CLIPSEG for name in ("clipseg", "LLM"))
    return next((folder for folder in folders if (folder / "config.json").is_file()), None)


def is_face_word(word: str) -> bool:
    """Whether a supercategory such as ``young woman`` stands for someone with a face."""
    return not FACE_WORDS.isdisjoint(word.lower().split())


def face_mask(picture: Tensor, faces: FaceModels) -> Tensor:
    """Ellipse round the largest face of a picture ``3 H W``: ``1 H W`` of 0 and 1.

    Raises:
        LikenessError: no face.
    """
    face = largest_face(faces.detector.detect(picture[None])[0])
    if face is None:
        raise bad_input(
            f"{NODE}: mask", f"no mask, and a picture in which {faces.name} finds no face", "a mask or a face",
            "Paint a mask in the picture's mask editor.",
        )  # fmt: skip
    return ellipse_mask(face.box, *picture.shape[-2:])
