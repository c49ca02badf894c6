"""A photo's way from Persona Train to the trainer: its mask, its size, its latent, its embeddings.

The node converts IMAGE and MASK to tensors once. Masks belong to the pictures as they came (:func:`masks_for`), then
both are brought to the training size (:func:`fit_all`), encoded (:func:`encode_photos`), and, for the identity loss,
given the vector of the face in them (:func:`with_identity`).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

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
from ..faces import models as face_models
from ..images import resize, to_comfy

NODE = "Persona Train"
CLIPSEG = "clipseg-rd64-refined"
#: Supercategories that stand for a face: for these an ellipse is made without being asked for.
FACE_WORDS = frozenset(
    ("face", "head", "portrait", "person", "people", "human", "man", "woman", "boy", "girl", "child", "kid", "baby",
     "guy", "lady", "adult", "teenager")
)  # fmt: skip


# --- masks ------------------------------------------------------------------------------------------------------------


def masks_for(pictures: Tensor, masks: Tensor | None, supercategory: str, faces: FaceModels | None) -> Tensor:
    """One mask for each of the pictures ``B 3 H W``: ``B 1 H W`` in [0, 1].

    Args:
        masks: what is connected, ``1 1 h w`` for all pictures or ``B 1 h w``, any size; None has masks made.
        supercategory: what a mask is made for.
        faces: face models that are connected.

    Raises:
        LikenessError: an empty mask, another number of masks, or none and nothing to make one with.
    """
    if masks is None:
        made = _made(pictures, supercategory, faces)
        return torch.stack([check_mask(mask, f"{NODE}: mask made for {supercategory!r}") for mask in made])
    if len(masks) not in (1, len(pictures)):
        raise bad_input(
            f"{NODE}: mask", f"{len(masks)} masks for {len(pictures)} pictures", "one for each, or one for all",
            "Batch as many masks as pictures, or connect a single one.",
        )  # fmt: skip
    resized = resize(masks, pictures.shape[-2:], "bilinear").expand(len(pictures), -1, -1, -1)
    return torch.stack([check_mask(mask, f"{NODE}: mask") for mask in resized])


def _made(pictures: Tensor, supercategory: str, faces: FaceModels | None) -> list[Tensor]:
    folder = _clipseg_folder()
    if folder is not None:
        return [clipseg_mask(picture.cpu(), supercategory, folder) for picture in pictures]
    if faces is None and is_face_word(supercategory) and facenet.installed():
        faces = face_models.load(face_models.FACENET)
    if faces is not None:
        return [face_mask(picture, faces) for picture in pictures]
    raise bad_input(
        f"{NODE}: mask",
        "no mask",
        f"a mask of the {supercategory}, face models, or the folder models/clipseg/{CLIPSEG}",
        "Paint a mask in the picture's mask editor, connect Face Models to Persona Train Options to have an ellipse "
        "round the face, or put CIDAS/clipseg-rd64-refined there to have the mask made.",
    )


def _clipseg_folder() -> Path | None:
    import folder_paths

    folders = (Path(folder_paths.models_dir) / name / CLIPSEG for name in ("clipseg", "LLM"))
    return next((folder for folder in folders if (folder / "config.json").is_file()), None)


def is_face_word(supercategory: str) -> bool:
    """Whether a supercategory such as ``young woman`` stands for someone with a face."""
    return not FACE_WORDS.isdisjoint(supercategory.lower().split())


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


# --- size, latent, embeddings -----------------------------------------------------------------------------------------


def fit_all(pictures: Tensor, side: int, crop: bool) -> Tensor:
    """Pictures or masks ``B C H W`` at the training size, ``B C S S``."""
    return torch.stack([fit(picture, side, crop) for picture in pictures])


def encode_photos(model: Any, vae: Any, clip_vision: Any, pictures: Tensor, masks: Tensor) -> list[Photo]:
    """Training examples of pictures ``B 3 S S`` and their masks ``B 1 S S``, on the CPU.

    Raises:
        LikenessError: the VAE makes NaN.
    """
    pixels = to_comfy(pictures)
    latents = model.model.process_latent_in(vae.encode(pixels)).float().cpu()  # B 4 s s
    if not torch.isfinite(latents).all():
        raise bad_input(f"{NODE}: vae", "NaN latents", "finite ones", "Use a VAE in fp32 (--fp32-vae) or another one.")
    embeddings = _embeddings(clip_vision, pixels, latents)
    return [
        Photo(latent, latent_mask(mask, latent.shape[-2:]), embedding)
        for latent, mask, embedding in zip(latents, masks, embeddings, strict=True)
    ]


def _embeddings(clip_vision: Any, pixels: Tensor, latents: Tensor) -> Tensor:
    """CLIP's projected image embedding ``B D``; without CLIP vision, pooled latents do."""
    if clip_vision is None:
        return pooled_latent_embedding(latents)
    return clip_vision.encode_image(pixels, crop="none")["image_embeds"].float().cpu()


def with_identity(
    faces: FaceModels | None, photos: Sequence[Photo], pictures: Tensor
) -> tuple[list[Photo], Identifier]:
    """The photos with boxes and vectors of their faces in ``pictures``, and what embeds the estimates.

    Raises:
        LikenessError: no face models, or a picture without a face.
    """
    if faces is None:
        raise bad_input(
            f"{NODE}: identity", "a weight above 0 and no face models", "face models in the input faces",
            "Connect Face Models to Persona Train Options, or set identity to 0.",
        )  # fmt: skip
    identifier = Identifier(face_models.private_embedder(faces))
    pictures = pictures.cpu()
    found = faces.detector.detect(pictures)
    return [identifier.reference(*row) for row in zip(photos, pictures, found, strict=True)], identifier
