"""The value LIKENESS_IDENTITIES: people encoded by one set of identity weights; made from photos, blended."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ....core.digest import digest
from ....core.errors import bad_input
from ....core.magicid.encoder import FaceFeatures
from ....faces import geometry
from ....faces.find import find_faces
from ....faces.interface import Face, FaceEmbedder, FaceModels, face_crop, largest_face
from ....formats.identity import FORMS, INSTANTID, MAGICID, PORTRAIT_UNNORM, IdentityWeights
from .. import images
from ..faces import models as face_models

NODE = "MagicID Identity"
COMBINE = MEAN, ALL = ("mean", "all tokens")
#: Side of the aligned crop that CLIP-Vision is given, and what an unaligned one holds beyond the face's box.
CROP, MARGIN = 224, 0.3


@dataclass(frozen=True, eq=False)
class Identity:
    """One person.

    Attributes:
        name: to tell people apart in reports.
        tokens: ``F_id``, ``L C``. nobody: what unconditional rows get, ``M C``.
        encoder: digest of the encoder that made them: tokens mean nothing to another one.
        scale, start, end: see :class:`likeness.core.magicid.run.PlacedIdentity`.
        vector: the recogniser's vector ``E``, the photos' mean, to know the person by; None where none was made.
        embedder: name of the recogniser that made it.
    """

    name: str
    tokens: Tensor
    nobody: Tensor
    encoder: str
    scale: float = 1.0
    start: float = 0.0
    end: float = 1.0
    vector: Tensor | None = None
    embedder: str = ""


@dataclass(frozen=True, eq=False)
class LoadedWeights:
    """The value LIKENESS_IDENTITY_WEIGHTS: weights that are loaded, and what they look at faces by.

    Attributes:
        key: digest of their encoder.
        face_models: None: the best that is installed. clip_vision: the host's, for forms that look at the picture.
    """

    weights: IdentityWeights
    key: str
    face_models: FaceModels | None = None
    clip_vision: Any = None

    @classmethod
    def of(cls, weights: IdentityWeights) -> LoadedWeights:
        """With the digest made."""
        state = weights.encoder.state_dict()
        return cls(weights, digest(weights.form, *(state[name] for name in sorted(state)[:8])))


@dataclass(frozen=True, eq=False)
class Identities:
    """The value LIKENESS_IDENTITIES: people in the user's order, and the weights that encoded them."""

    loaded: LoadedWeights
    people: tuple[Identity, ...] = field(default=())

    def plus(self, person: Identity) -> Identities:
        """With one more."""
        return replace(self, people=(*self.people, person))


def chained(loaded: LoadedWeights, before: Identities | None, node: str) -> Identities:
    """The chain to go on with.

    Raises:
        LikenessError: it was made with other weights.
    """
    if before is None:
        return Identities(loaded)
    if before.loaded.key != loaded.key:
        raise bad_input(
            f"{node}: identities", f"people encoded by {before.loaded.weights.name}", f"by {loaded.weights.name}",
            "Use one Load Identity Weights for all identities of a picture.",
        )  # fmt: skip
    return before


def identity_from(loaded: LoadedWeights, image: Tensor, name: str, combine: str = MEAN) -> tuple[Identity, str]:
    """Encode one person from photos.

    Args:
        image: IMAGE, one photo or several of the same person; in each the largest face counts.
        combine: :data:`MEAN` of the photos' tokens, or :data:`ALL` of them.

    Returns:
        The person, and in words what was seen.

    Raises:
        LikenessError: no photo shows a face, or the weights need what is not connected.
    """
    shape = loaded.weights.encoder.shape
    if shape.picture_width and loaded.clip_vision is None:
        raise bad_input(
            "Load Identity Weights: clip_vision", "nothing",
            f"CLIP-Vision, which {loaded.weights.form} looks at the face with",
            "Connect Load CLIP Vision with CLIP-ViT-H-14-laion2B-s32B-b79K.",
        )  # fmt: skip
    models = loaded.face_models or face_models.load(face_models.AUTO)
    seen, note = _seen(images.to_torch(image).float().cpu(), models)
    embedder = models.make_embedder() if shape.vector_width else None
    vectors = None if embedder is None else _vectors(loaded.weights, embedder, seen)
    pictures, blank = _pictures(loaded.weights, loaded.clip_vision, seen) if shape.picture_width else (None, None)
    tokens, nobody = encode(loaded.weights, FaceFeatures(vectors, pictures), blank)
    joined = tokens.mean(dim=0) if combine == MEAN else tokens.flatten(0, 1)
    known = {} if embedder is None else {"vector": _mean(embedder, vectors), "embedder": embedder.name}
    return Identity(name, joined, nobody[0], loaded.key, **known), f"{name}: {note}, {len(joined)} tokens"


def _seen(photos: Tensor, models: FaceModels) -> tuple[list[tuple[Tensor, Face]], str]:
    """Each photo that shows a face, with its largest one; and in words what was seen."""
    found = find_faces(photos, models).pictures
    seen = [(photo, face) for photo, faces in zip(photos, found, strict=True) if (face := largest_face(faces))]
    if not seen:
        raise bad_input(
            f"{NODE}: image", f"{len(photos)} photos in which no face is seen", "a photo that shows the face",
            "Use a clearer or closer photo, or another provider in Face Models.",
        )  # fmt: skip
    several = sum(len(faces) > 1 for faces in found)
    more = f" (the largest of several in {several})" if several else ""
    return seen, f"a face in {len(seen)} of {len(photos)} photos{more}"


@torch.no_grad()
def encode(weights: IdentityWeights, face: FaceFeatures, blank: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Tokens of faces ``B L C`` and of nobody ``1 L C``, float32 on the CPU.

    Args:
        blank: ``1 P W``, what CLIP-Vision makes of a picture that is zero after normalisation.
    """
    encoder = weights.encoder
    parameter = next(encoder.parameters())
    moved = FaceFeatures(*(None if x is None else x.to(parameter) for x in (face.vector, face.picture)))
    return encoder(moved).float(), encoder.unconditional(blank).float()


def _mean(embedder: FaceEmbedder, vectors: Tensor) -> Tensor:
    """One vector ``E`` to know the person by."""
    mean = vectors.float().mean(dim=0).cpu()
    return mean if embedder.euclidean else F.normalize(mean, dim=0)


def _vectors(weights: IdentityWeights, embedder: FaceEmbedder, seen: Sequence[tuple[Tensor, Face]]) -> Tensor:
    """The recogniser's vectors ``B E``, as the form takes them."""
    form = FORMS[weights.form]
    _check_embedder(weights, embedder)
    crops = torch.cat([face_crop(embedder, photo, face) for photo, face in seen])
    return embedder.embed_raw(crops) if form.vector == "raw" else embedder.embed(crops)


def _check_embedder(weights: IdentityWeights, embedder: FaceEmbedder) -> None:
    form, width = FORMS[weights.form], weights.encoder.shape.vector_width
    raw_lacking = form.vector == "raw" and not hasattr(embedder, "embed_raw")
    other = weights.form == MAGICID and weights.embedder not in ("", embedder.name)
    pack = weights.form in (INSTANTID, PORTRAIT_UNNORM) and form.pack not in embedder.name
    if embedder.width == width and not (raw_lacking or other or pack):
        return
    wanted = weights.embedder if weights.form == MAGICID else f"insightface {form.pack}"
    raise bad_input(
        "Load Identity Weights: face_models", f"vectors by {embedder.name}",
        f"those of {wanted}, as {weights.name} needs",
        "Choose it in Face Models and connect that node.",
    )  # fmt: skip


def _pictures(weights: IdentityWeights, clip_vision: Any, seen: Sequence[tuple[Tensor, Face]]) -> tuple[Tensor, Tensor]:
    """CLIP-Vision's tokens of each face ``B P W``, and of the picture that is zero after normalisation ``1 P W``."""
    crops = torch.cat([_clip_crop(photo, face, FORMS[weights.form].aligned) for photo, face in seen])
    mean = torch.tensor(getattr(clip_vision, "image_mean", (0.48145466, 0.4578275, 0.40821073)))
    blank = mean.view(1, 3, 1, 1).expand(1, 3, CROP, CROP)
    out = clip_vision.encode_image(torch.cat([crops, blank]).movedim(1, -1), crop="center")
    hidden = out["penultimate_hidden_states"].float().cpu()
    if hidden.shape[-1] != weights.encoder.shape.picture_width:
        raise bad_input(
            "Load Identity Weights: clip_vision", f"tokens of width {hidden.shape[-1]}",
            str(weights.encoder.shape.picture_width),
            "Connect CLIP-ViT-H-14-laion2B-s32B-b79K.",
        )  # fmt: skip
    return hidden[:-1], hidden[-1:]


def _clip_crop(photo: Tensor, face: Face, aligned: bool) -> Tensor:
    if aligned and face.landmarks is not None:
        return geometry.norm_crop(photo[None], face.landmarks[None], CROP)
    (x, y), half = face.centre, max(face.size) / 2
    box = torch.tensor([[x - half, y - half, x + half, y + half]])
    return geometry.crop_square(photo[None], box, CROP, MARGIN, face.tilt)


def blend(a: Identities, b: Identities, share: float, name: str) -> Identities:
    """The last person of each mixed: ``(1 - share) a + share b``; those before in ``a`` stay.

    Raises:
        LikenessError: no person, other weights, or another number of tokens.
    """
    node = "MagicID Blend Identities"
    if not a.people or not b.people:
        raise bad_input(f"{node}: identities", "nobody", "a person each", "Connect MagicID Identity nodes.")
    chained(a.loaded, b, node)
    one, two = a.people[-1], b.people[-1]
    if one.tokens.shape != two.tokens.shape:
        raise bad_input(
            f"{node}: identities", f"{len(one.tokens)} and {len(two.tokens)} tokens", "as many in both",
            "Make both with combine 'mean'.",
        )  # fmt: skip
    mixed = replace(one, name=name or f"{one.name} + {two.name}", tokens=torch.lerp(one.tokens, two.tokens, share))
    return replace(a, people=(*a.people[:-1], mixed))
