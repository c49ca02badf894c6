"""What the rows of a model call are, told by what the host says of them and never by counting alone.

The host lays a call out in chunks, one per conditioning, each with a row per picture, and names each chunk's
conditioning (``uuids``) and the list it comes from (``cond_or_uncond``). Packs put themselves between: a sampler hands
over some of the pictures (context windows), a function wrapper hands over tiles, several a call. So the batch is noted
where the host makes it (:meth:`Batch.of`), and each call is read against it (:meth:`Batch.rows`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ...core.masks import FULL_FRAME, Frame

#: In ``transformer_options``: the :class:`Batch` that a call's rows belong to.
BATCH_KEY = "likeness_batch"

Conditioning = Mapping[str, Any]


@dataclass(frozen=True)
class Row:
    """One row of a model call.

    Attributes:
        conditional: whether it belongs to the positive conditioning.
        image: number of its picture in the run's batch.
        frame: which part of that picture it shows; None where nobody knows.
        conditioning: the host's entry for it (text, area, ``uuid`` and whatever nodes have put there), or None.
    """

    conditional: bool
    image: int
    frame: Frame | None = FULL_FRAME
    conditioning: Conditioning | None = None


def rows_of(options: Mapping[str, Any], x: torch.Tensor, context: torch.Tensor | None) -> list[Row] | None:
    """The rows of a model call, or None where they cannot be told; see :meth:`Batch.rows`.

    A call that was made without the host's batching is taken to be in the host's order: whole pictures, chunk by chunk,
    list 0 the positive one.
    """
    batch: Batch | None = options.get(BATCH_KEY)
    if batch is not None:
        return batch.rows(options, x, context)
    chunks = list(options.get("cond_or_uncond") or [0])
    pictures, rest = divmod(x.shape[0], len(chunks))
    return None if rest else [Row(chunk == 0, image) for chunk in chunks for image in range(pictures)]


def text_of(entry: Conditioning) -> torch.Tensor | None:
    """The text ``1 L C`` a conditioning is sampled with. An entry the host has copied into another list keeps its own
    fields beside the other list's text."""
    made = entry.get("model_conds", {}).get("c_crossattn")
    text = getattr(made, "cond", entry.get("cross_attn"))
    return text if isinstance(text, torch.Tensor) else None


@dataclass(frozen=True)
class Batch:
    """One ``calc_cond_batch``: lists of conditionings for some pictures at one noise level.

    Attributes:
        latents: ``B C h w``, whole pictures. images: their numbers in the run's batch.
        conditional: per list whether it is the positive one. entries: the lists.
    """

    latents: torch.Tensor
    images: tuple[int, ...]
    conditional: tuple[bool, ...]
    entries: tuple[tuple[Conditioning, ...], ...]

    def __deepcopy__(self, _memo: dict) -> Batch:
        return self  # options are copied deeply by older hosts

    @classmethod
    def of(
        cls, conds: Sequence[Any], latents: torch.Tensor, named: Mapping[str, Any], options: Mapping[str, Any]
    ) -> Batch:
        """Note a batch.

        Args:
            conds: the lists as ``calc_cond_batch`` got them. latents: likewise.
            named: the guider's lists by name. options: ``transformer_options``.
        """
        entries = tuple(tuple(given or ()) for given in conds)
        return cls(latents, _images(latents.shape[0], options), _positive(conds, entries, named), entries)

    def rows(self, options: Mapping[str, Any], x: torch.Tensor, context: torch.Tensor | None) -> list[Row] | None:
        """The rows of a model call, or None where they cannot be told.

        Args:
            options: the call's ``transformer_options``. x: its latents. context: its text, ``rows L C``.
        """
        chunks = list(options.get("cond_or_uncond") or ())
        uuids = list(options.get("uuids") or [None] * len(chunks))
        pictures = len(self.images)
        tiles, rest = divmod(x.shape[0], max(1, len(chunks) * pictures))
        if not chunks or rest or len(uuids) != len(chunks) or max(chunks) >= len(self.entries):
            return None
        found = [self._entry(chunk, uuid) for chunk, uuid in zip(chunks, uuids, strict=True)]
        if tiles == 1:
            frames = [self._frame(entry, x) for entry in found]
            if None not in frames:
                return [
                    Row(self.conditional[chunk], image, frame, entry)
                    for chunk, entry, frame in zip(chunks, found, frames, strict=True)
                    for image in self.images
                ]
        one = [
            (self.conditional[chunk], n, entry)
            for chunk, entry in zip(chunks, found, strict=True)
            for n in range(pictures)
        ]
        order = _tile_order(context, len(one), tiles)
        if order is None:
            return None
        laid = [item for _ in range(tiles) for item in one] if order else [item for item in one for _ in range(tiles)]
        frames = self._tile_frames(x, [n for _, n, _ in laid])
        return [
            Row(conditional, self.images[n], frame, entry)
            for (conditional, n, entry), frame in zip(laid, frames, strict=True)
        ]

    def _entry(self, chunk: int, uuid: Any) -> Conditioning | None:
        """An entry is told by its list too: the host copies entries of one list, with their ids, into others."""
        return next((entry for entry in self.entries[chunk] if entry.get("uuid") == uuid), None)

    def _frame(self, entry: Conditioning | None, x: torch.Tensor) -> Frame | None:
        """Which part a chunk of the host's own shows: the whole, or its area; None where the size is neither."""
        height, width = self.latents.shape[-2:]
        if tuple(x.shape[-2:]) == (height, width):
            return FULL_FRAME
        area = None if entry is None else entry.get("area")
        if area is None:
            return None
        rows, columns, top, left = (*area[:2], *area[len(area) // 2 :][:2])
        if (min(rows, height - top), min(columns, width - left)) != tuple(x.shape[-2:]):
            return None
        return _share(top, left, x, self.latents)

    def _tile_frames(self, x: torch.Tensor, pictures: Sequence[int]) -> list[Frame | None]:
        """Where each row of tiles was cut out of its picture: found by its own values, which a crop keeps."""
        height, width = x.shape[-2] - 1, x.shape[-1] - 1
        whole_height, whole_width = self.latents.shape[-2:]
        if height >= whole_height or width >= whole_width:
            return [None] * len(x)
        latents = self.latents.to(x)[list(pictures)]  # R C H W
        corners = [(0, 0), (0, width), (height, 0), (height, width)]
        same = torch.ones(len(x), whole_height - height, whole_width - width, dtype=torch.bool, device=x.device)
        for row, column in corners:
            part = latents[..., row : row + whole_height - height, column : column + whole_width - width]
            same &= (part == x[..., row, column, None, None]).all(dim=1)
        flat = same.flatten(1).int()
        found = torch.stack([flat.sum(dim=1), flat.argmax(dim=1)]).tolist()
        columns = whole_width - width
        return [
            _share(place // columns, place % columns, x, self.latents) if count == 1 else None
            for count, place in zip(*found, strict=True)
        ]


def _share(top: int, left: int, x: torch.Tensor, whole: torch.Tensor) -> Frame:
    height, width = whole.shape[-2:]
    return Frame(top / height, left / width, x.shape[-2] / height, x.shape[-1] / width)


def _images(count: int, options: Mapping[str, Any]) -> tuple[int, ...]:
    """The pictures' numbers: all of the run's, or those of a context window over the batch."""
    window = options.get("context_window")
    inside = list(getattr(window, "index_list", ()))
    before = getattr(window, "causal_anchor_index", None)  # a picture put before the window, whose result is dropped
    if before is not None and before >= 0:
        inside = [before, *inside]
    if getattr(window, "dim", None) == 0 and len(inside) == count:
        return tuple(int(index) for index in inside)
    return tuple(range(count))


def _positive(
    conds: Sequence[Any], entries: Sequence[Sequence[Conditioning]], named: Mapping[str, Any]
) -> tuple[bool, ...]:
    """Per list whether it is the guider's positive one: by identity, or (copied lists) by its first entry's id.

    Where neither tells, the first list is the positive one, as the host's own sampling function orders them.
    """
    first = {name: known[0].get("uuid") for name, known in named.items() if known}

    def name_of(given: Any, own: Sequence[Conditioning]) -> str | None:
        by_identity = next((name for name, known in named.items() if known is given), None)
        return by_identity or next((n for n, uuid in first.items() if own and own[0].get("uuid") == uuid), None)

    names = [name_of(given, own) for given, own in zip(conds, entries, strict=True)]
    if "positive" not in named or not any(names):
        return tuple(index == 0 for index in range(len(names)))
    return tuple(name == "positive" for name in names)


def _tile_order(context: torch.Tensor | None, period: int, tiles: int) -> bool | None:
    """Whether several tiles lie tile by tile (True), or row by row of the host's own order (False).

    The text tells: it is repeated along with the rows. Tile by tile is what concatenating crops gives, and holds where
    the text says nothing (all texts the same).
    """
    if tiles <= 1 or context is None or context.shape[0] != tiles * period:
        return True
    rows = context.flatten(1)
    by_tile = (rows.unflatten(0, (tiles, period)) == rows[:period]).all()
    by_row = (rows.unflatten(0, (period, tiles)) == rows[::tiles, None]).all()
    by_tile, by_row = torch.stack([by_tile, by_row]).tolist()
    return True if by_tile else False if by_row else None
