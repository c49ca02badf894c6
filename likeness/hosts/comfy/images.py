"""The boundary between ComfyUI's IMAGE and MASK and the core's tensors: layout, range and size change here only."""

from __future__ import annotations

import comfy.utils
import torch

from ...core.errors import bad_input

#: Picture sides are multiples of this: 8 for the autoencoder, twice so that the first downsampling is even.
SIDE_MULTIPLE = 16


def to_torch(image: torch.Tensor) -> torch.Tensor:
    """IMAGE ``B H W C`` in 0..1 (alpha dropped, grey repeated) to ``B 3 H W``."""
    pixels = image[None] if image.ndim == 3 else image
    pixels = pixels[..., :3] if pixels.shape[-1] >= 3 else pixels[..., :1].expand(*pixels.shape[:-1], 3)
    return pixels.movedim(-1, 1)


def to_comfy(pixels: torch.Tensor) -> torch.Tensor:
    """``B 3 H W`` to IMAGE ``B H W 3``, clamped to 0..1, on the CPU as float32."""
    return pixels.movedim(1, -1).clamp(0, 1).float().cpu()


def mask_to_torch(mask: torch.Tensor, *, source: str) -> torch.Tensor:
    """MASK (``H W``, ``B H W`` or ``B 1 H W``) to ``B 1 H W`` in 0..1."""
    if mask.ndim == 4 and 1 not in (mask.shape[1], mask.shape[-1]):
        raise bad_input(source, f"a mask of shape {tuple(mask.shape)}", "one channel", "Use an image-to-mask node.")
    flat = {
        2: lambda: mask[None],
        3: lambda: mask,
        4: lambda: mask.flatten(0, 1) if mask.shape[1] == 1 else mask[..., 0],
    }
    if 0 in mask.shape:
        raise bad_input(source, f"an empty batch (shape {tuple(mask.shape)})", "at least one mask", "Check its source.")
    if mask.ndim not in flat:
        raise bad_input(source, f"a mask of shape {tuple(mask.shape)}", "H W or B H W", "Connect a MASK output.")
    return flat[mask.ndim]()[:, None].float().clamp(0, 1)


def painted(mask: torch.Tensor | None) -> torch.Tensor | None:
    """The mask, or None where it is what *Load Image* hands on for a picture without one: zeros of 64 x 64."""
    blank = mask is not None and mask.numel() and tuple(mask.shape[-2:]) == (64, 64) and not bool(mask.any())
    return None if blank else mask


def fit_size(height: int, width: int, side: int | None) -> tuple[int, int]:
    """The size a picture is brought to: as many pixels as ``side`` squared, its own shape kept; None keeps its size.

    Both sides come out as multiples of :data:`SIDE_MULTIPLE`.
    """
    scale = 1.0 if side is None else side / (height * width) ** 0.5
    fitted = (max(SIDE_MULTIPLE, round(edge * scale / SIDE_MULTIPLE) * SIDE_MULTIPLE) for edge in (height, width))
    return tuple(fitted)


def resize(pixels: torch.Tensor, size: tuple[int, int], method: str = "lanczos") -> torch.Tensor:
    """Resize ``B C H W`` to ``size`` (height, width) with the host's own filter; the same size is returned as it is."""
    if tuple(pixels.shape[-2:]) == tuple(size):
        return pixels
    return comfy.utils.common_upscale(pixels, size[1], size[0], method, "disabled").clamp(0, 1)
