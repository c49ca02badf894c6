"""Masks and token grids: a picture's mask of any size brought to the grid of an attention layer."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from .errors import bad_input

Grid = tuple[int, int]


@dataclass(frozen=True)
class Frame:
    """A part of a picture: its upper left corner and its size, as shares of the whole picture's height and width."""

    top: float = 0.0
    left: float = 0.0
    height: float = 1.0
    width: float = 1.0

    def crop(self, plane: torch.Tensor) -> torch.Tensor:
        """That part of ``h w`` (at least one pixel); the frame of the whole picture gives the plane itself."""
        if self == FULL_FRAME:
            return plane
        rows, columns = plane.shape
        top, left = min(rows - 1, round(self.top * rows)), min(columns - 1, round(self.left * columns))
        bottom = max(top + 1, round((self.top + self.height) * rows))
        right = max(left + 1, round((self.left + self.width) * columns))
        return plane[top:bottom, left:right]


#: The whole picture.
FULL_FRAME = Frame()


def check_mask(
    mask: torch.Tensor, name: str, kind: str = "mask", without: str = "to use the whole picture"
) -> torch.Tensor:
    """Return ``mask`` (``h w``, values in [0, 1]) or explain what is wrong with it.

    Args:
        mask: one plane. name: whose it is. kind: what it is called there. without: what leaving it out is for.

    Raises:
        LikenessError: it is not one plane, holds NaN, or is empty.
    """
    check_plane(mask, f"{name}: {kind}")
    if not bool((mask > 0).any()):
        raise bad_input(
            f"{name}: {kind}",
            "an empty mask (no pixel above 0)",
            "a mask that is white over the concept",
            f"Paint or segment the concept, invert the mask, or disconnect it {without}.",
        )
    return mask


def check_plane(mask: torch.Tensor, source: str) -> torch.Tensor:
    """Return ``mask`` if it is one plane ``h w`` of numbers; it may be empty.

    Raises:
        LikenessError: it is not one plane, or holds NaN.
    """
    if mask.ndim != 2 or 0 in mask.shape:
        raise bad_input(source, f"shape {tuple(mask.shape)}", "one plane, height x width", "Give one mask.")
    if not bool(torch.isfinite(mask).all()):
        raise bad_input(source, "NaN or infinite values", "values in [0, 1]", "Check how the mask is made.")
    return mask


def area_to_grid(mask: torch.Tensor, grid: Grid) -> torch.Tensor:
    """The share of each cell of ``grid`` that a mask covers: ``H W`` in [0, 1], of any size -> ``h w``."""
    plane = mask.float().clamp(0, 1)[None, None]
    return F.adaptive_avg_pool2d(_at_least(plane, grid), grid)[0, 0]


def mask_to_grid(mask: torch.Tensor, grid: Grid) -> torch.Tensor:
    """Which cells of ``grid`` a mask covers, as a boolean ``h w``.

    A cell counts when at least half of it is covered. A concept too thin for that keeps its best covered cells, so
    that only an all-zero mask gives an empty result.

    Args:
        mask: ``H W`` in [0, 1], of any size; it frames the same picture as the grid.
        grid: height and width of the result.
    """
    covered = area_to_grid(mask, grid)
    kept = covered >= 0.5
    if bool(kept.any()) or not bool((covered > 0).any()):
        return kept
    return covered >= covered.max() * 0.999


def _at_least(plane: torch.Tensor, grid: Grid) -> torch.Tensor:
    """Repeat pixels of a mask smaller than the grid, so that pooling never has to invent any."""
    times = [-(-side // size) for side, size in zip(grid, plane.shape[-2:], strict=True)]
    return plane.repeat_interleave(times[0], dim=2).repeat_interleave(times[1], dim=3)


def level_grid(latent: Grid, factor: int) -> Grid:
    """Token grid of a level: a UNet's strided convolutions round up, so an odd side keeps its half cell."""
    return -(-latent[0] // factor), -(-latent[1] // factor)


def token_grid(latent: Grid, factor: int, tokens: int) -> Grid:
    """The grid of ``tokens`` tokens at a level of resolution ``factor``, for a latent of size ``latent``.

    Some other patches run a level at another size; then the grid of the latent's aspect with that many tokens is
    taken.

    Raises:
        LikenessError: no grid of this aspect has that many tokens (e.g. merged or tiled tokens).
    """
    grid = level_grid(latent, factor)
    if grid[0] * grid[1] == tokens:
        return grid
    height = max(1, round((tokens * latent[0] / latent[1]) ** 0.5))
    for rows in (height, height - 1, height + 1):
        if rows > 0 and tokens % rows == 0:
            return rows, tokens // rows
    raise bad_input(
        "MagicFace: self-attention",
        f"{tokens} tokens for a latent of {latent[0]} x {latent[1]}",
        f"{grid[0]} x {grid[1]} = {grid[0] * grid[1]}",
        "Switch off patches that merge or tile tokens (token merging, hypertile) for this model.",
    )
