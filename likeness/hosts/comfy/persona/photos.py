"""Where the person is in Persona Train's pictures: the connected mask, CLIPSeg's, or an ellipse round the face."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ....core.errors import bad_input
from ....faces import facenet
from ....faces.interface import FaceModels, largest_face
from ....training.persona.identity import Identifier
from ....training.persona.photos import (
    Photo,
    check_mask,
    clipseg_mask,
    ellipse_mask,
    fit,
    latent_mask,
    pooled_latent_embedding,
)
from .. import images
from ..faces import models as face_models
from ..faces.models import private_embedder
from .training_host import NODE

if TYPE_CHECKING:
    from .train import Inputs

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


def _on(photo: Photo, device: torch.device) -> Photo:
    """A photo on the training device, as ordinary tensors."""

    def moved(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else tensor.clone().to(device)

    return Photo(moved(photo.latent), moved(photo.mask), moved(photo.image), moved(photo.identity), photo.box)


def fitted_pictures(inputs: Inputs, size: int) -> Tensor:
    """The training pictures ``B 3 S S`` in [0, 1]."""
    return torch.stack([fit(picture, size, inputs.crop) for picture in images.to_torch(inputs.image)])


def prepare_photos(inputs: Inputs, pictures: Tensor, word: str) -> tuple[list[Photo], int]:
    """Encode, mask and embed the ``pictures`` of :func:`fitted_pictures`; also the length of the image embedding."""
    masks = masks_of(inputs.mask, images.to_torch(inputs.image), word, inputs.faces)
    latents = inputs.vae.encode(images.to_comfy(pictures))
    latents = inputs.model.model.process_latent_in(latents).float().cpu()
    if not torch.isfinite(latents).all():
        raise bad_input(f"{NODE}: vae", "NaN latents", "finite ones", "Use a VAE in fp32 (--fp32-vae) or another one.")
    embedded = _embed(inputs.clip_vision, images.to_comfy(pictures), latents)
    size = pictures.shape[-1]
    photos = [
        Photo(latent, latent_mask(fit(mask, size, inputs.crop), latent.shape[-2:]), image)
        for latent, mask, image in zip(latents, masks, embedded, strict=True)
    ]
    return photos, embedded.shape[1]


def with_identity(
    faces: FaceModels | None, photos: list[Photo], pictures: Tensor
) -> tuple[list[Photo], Identifier]:
    """The photos with boxes and vectors of their faces in ``pictures``, and what embeds the estimates.

    Raises:
        LikenessError: no face models, or a picture without a face.
    """
    if faces is None:
        raise bad_input(
            f"{NODE}: identity", "a weight above 0 and no face models", "face models in the input faces",
            "Connect Face Models, or set identity to 0.",
        )  # fmt: skip
    identifier = Identifier(private_embedder(faces))
    pictures = pictures.cpu()
    found = faces.detector.detect(pictures)
    return [identifier.reference(*row) for row in zip(photos, pictures, found, strict=True)], identifier


def _embed(clip_vision: Any, pixels: Tensor, latents: Tensor) -> Tensor:
    """CLIP's projected image embedding ``B D``; without CLIP vision, pooled latents do."""
    if clip_vision is None:
        return pooled_latent_embedding(latents)
    return clip_vision.encode_image(pixels, crop="none")["image_embeds"].float().cpu()
