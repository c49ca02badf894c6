"""Photos and masks made ready for learning a persona."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from ...core.errors import bad_input

logger = logging.getLogger("likeness")

_SEGMENTATION_TEMPLATES = (
    "{}",
    "a {}",
    "the {}",
    "one {}",
    "a photo of a {}",
    "a picture with a {}",
    "a clear {}",
    "part of a {}",
    "a {} seen closely",
)


@dataclass(frozen=True)
class Photo:
    """One training example, all on the training device.

    Attributes:
        latent: ``4 h w`` in the model's scaled space.
        mask: ``1 h w`` weights in [0, 1].
        image: ``D`` image embedding, or None without residual branch.
        identity: ``E`` face embedding of the photo, or None without identity loss.
        box: the face in pixels of the prepared picture, for the identity loss.
    """

    latent: Tensor
    mask: Tensor
    image: Tensor | None = None
    identity: Tensor | None = None
    box: tuple[float, float, float, float] | None = None

    def to(self, device: torch.device) -> Photo:
        """A copy on a device; its tensors may take part in autograd wherever the photo was made."""
        copies = {
            name: value.clone().to(device)
            for name in ("latent", "mask", "image", "identity")
            if (value := getattr(self, name)) is not None
        }
        return replace(self, **copies)


def load_picture(path: str | Path) -> Tensor:
    """A picture file -> ``3 H W`` in [0, 1]."""
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with Image.open(path) as file:
            pixels = np.asarray(ImageOps.exif_transpose(file).convert("RGB"), dtype=np.float32) / 255
    except (OSError, UnidentifiedImageError) as cause:
        raise bad_input("Persona Train: image", f"{path} ({cause})", "a readable picture", "Check the path.") from cause
    return torch.from_numpy(pixels).permute(2, 0, 1)


def fit(picture: Tensor, size: int, crop: bool = False) -> Tensor:
    """``C H W`` -> ``C size size``: stretched (released code), or cut to its central square first."""
    if crop:
        _, height, width = picture.shape
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        picture = picture[:, top : top + side, left : left + side]
    resized = interpolate(picture[None], size=(size, size), mode="bilinear", antialias=True, align_corners=False)
    return resized[0].clamp(0, 1)


def check_mask(mask: Tensor, where: str = "Persona Train: mask") -> Tensor:
    """An empty mask is an error, a full one is allowed and said aloud.

    Args:
        mask: ``1 H W`` or ``H W`` in [0, 1].

    Returns:
        ``1 H W``.
    """
    mask = mask if mask.dim() == 3 else mask[None]
    if not torch.isfinite(mask).all() or mask.amax() <= 0:
        raise bad_input(where, "an empty mask", "a mask that is above 0 somewhere", "Paint the face, or leave it out.")
    if mask.amin() >= 1:
        logger.info("%s covers the whole picture: the background is learnt too.", where)
    return mask


def ellipse_mask(box: tuple[float, float, float, float], height: int, width: int) -> Tensor:
    """Ellipse round a face box, a little taller than the box so that hair counts: ``1 H W`` of 0 and 1."""
    x0, y0, x1, y1 = box
    cx, cy = (x0 + x1) / 2, (y0 + y1) / 2 - 0.08 * (y1 - y0)
    rx, ry = max(0.62 * (x1 - x0), 1.0), max(0.72 * (y1 - y0), 1.0)
    ys = torch.arange(height).float()[:, None] + 0.5
    xs = torch.arange(width).float()[None] + 0.5
    return ((((xs - cx) / rx) ** 2 + ((ys - cy) / ry) ** 2) <= 1).float()[None]


@torch.no_grad()
def clipseg_mask(picture: Tensor, word: str, folder: str | Path) -> Tensor:
    """Soft mask ``1 H W`` of ``word`` by CLIPSeg, mean over nine phrasings; no threshold.

    Args:
        folder: a local transformers copy of ``CIDAS/clipseg-rd64-refined``.
    """
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise bad_input(
            "Persona Train: mask", f"no CLIPSeg weights in {folder.name}", "them, or a mask", "Connect a mask."
        )
    from transformers import CLIPSegForImageSegmentation, CLIPSegProcessor

    model = CLIPSegForImageSegmentation.from_pretrained(folder, local_files_only=True).eval()
    processor = CLIPSegProcessor.from_pretrained(folder, local_files_only=True)
    texts = [template.format(word) for template in _SEGMENTATION_TEMPLATES]
    pixels = (picture.permute(1, 2, 0).numpy() * 255).astype(np.uint8)
    inputs = processor(text=texts, images=[pixels] * len(texts), padding=True, return_tensors="pt")
    soft = model(**inputs).logits.sigmoid().mean(dim=0)  # 352 352
    return interpolate(soft[None, None], size=picture.shape[1:], mode="bilinear", align_corners=False)[0]


def latent_mask(mask: Tensor, shape: tuple[int, int]) -> Tensor:
    """``1 H W`` -> ``1 h w``, nearest as in the released code; a mask lost on the way is an error."""
    small = interpolate(check_mask(mask)[None].float(), size=shape, mode="nearest")[0]
    if small.amax() <= 0:
        small = interpolate(mask[None].float(), size=shape, mode="area")[0]
    return small


def pooled_latent_embedding(latents: Tensor, side: int = 8) -> Tensor:
    """Image embedding where no CLIP vision model is at hand: pooled latents ``B 4 h w`` -> ``B D`` of unit RMS."""
    pooled = torch.nn.functional.adaptive_avg_pool2d(latents.float(), side).flatten(1)
    return torch.nn.functional.layer_norm(pooled, pooled.shape[1:])


def clip_vision_embedding(pictures: Tensor, vision: torch.nn.Module) -> Tensor:
    """Projected CLIP embedding of whole pictures, not normalised: ``B 3 H W`` in [0, 1] -> ``B D``.

    Args:
        vision: a transformers ``CLIPVisionModelWithProjection`` (the released code uses ViT-B/32).
    """
    side = vision.config.image_size
    small = interpolate(pictures, size=(side, side), mode="bicubic", align_corners=True)
    mean = small.new_tensor([0.48145466, 0.4578275, 0.40821073]).view(1, 3, 1, 1)
    std = small.new_tensor([0.26862954, 0.26130258, 0.27577711]).view(1, 3, 1, 1)
    with torch.no_grad():
        return vision((small - mean) / std).image_embeds.float()
