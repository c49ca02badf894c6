"""What the crops are drawn with: the face prompt, and conditioning that was made for the whole picture, re-cut."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .. import images

#: ``P C h w`` planes over whole pictures (one for all or one each) to ``F C s s``, one for each face's crop.
Cut = Callable[[Tensor], Tensor]
#: Places in the whole picture that have no counterpart in a crop.
STRIPPED = ("gligen",)
#: A mask that keeps less than this of any crop says nothing there.
LEAST = 1e-3


def recut(conditioning: list, cut: Cut, size: tuple[int, int]) -> tuple[list, list[str]]:
    """The conditioning as the crops see it: control pictures, masks and areas are cut where the crops are.

    Entries whose place lies outside all crops are left out; where nothing would be left, all stay without their places.

    Args:
        conditioning: CONDITIONING made for the whole picture; left untouched.
        cut: see :data:`Cut`. size: height and width of the pictures.

    Returns:
        The new conditioning, and in words what was done to it.
    """
    notes: dict[str, None] = {}
    controls: dict[int, Any] = {}
    entries = [(text, _entry(values, cut, size, controls, notes)) for text, values in conditioning]
    placed = [[text, values] for text, values in entries if values is not None]
    if not placed:
        notes["no area or mask of the conditioning meets a face: it counts everywhere"] = None
        stay = ("area", "mask", "mask_strength")
        bare = [[text, {k: v for k, v in values.items() if k not in stay}] for text, values in conditioning]
        return recut(bare, cut, size)[0], list(notes)
    if len(placed) < len(entries):
        notes["areas and masks that meet no face were left out"] = None
    return placed, list(notes)


def _entry(
    values: dict[str, Any], cut: Cut, size: tuple[int, int], controls: dict[int, Any], notes: dict[str, None]
) -> dict[str, Any] | None:
    kept = {name: value for name, value in values.items() if name not in (*STRIPPED, "area", "mask", "control")}
    for name in STRIPPED:
        if name in values:
            notes[f"{name} was left out: its places are those of the whole picture"] = None
    place = _place(values, size)
    if place is not None:
        mask = cut(place)[:, 0]  # F s s
        if not bool((mask > LEAST).any()):
            return None
        notes["areas and masks were cut to the faces"] = None
        kept.update(mask=mask, set_area_to_bounds=False)
    if values.get("control") is not None:
        control = _control(values["control"], cut, controls, notes)
        if control is not None:
            kept["control"] = control
    return kept


def _place(values: dict[str, Any], size: tuple[int, int]) -> Tensor | None:
    """Area and mask of an entry as one plane ``P 1 h w`` over the whole picture, or None where it has neither."""
    area, mask = values.get("area"), values.get("mask")
    if mask is not None:
        mask = images.mask_to_torch(mask, source="DIIR Face Repair: mask of the conditioning")
    if area is None:
        return mask
    height, width = size if mask is None else mask.shape[-2:]
    if area[0] == "percentage":
        h, w, y, x = (float(share) for share in area[1:])
    else:  # in latent pixels of the whole picture, an eighth of its own
        h, w, y, x = (8 * edge / side for edge, side in zip(area, (*size, *size), strict=True))
    plane = torch.zeros(1, 1, height, width)
    rows = slice(round(y * height), max(round(y * height) + 1, round((y + h) * height)))
    columns = slice(round(x * width), max(round(x * width) + 1, round((x + w) * width)))
    plane[..., rows, columns] = 1
    return plane if mask is None else plane * mask.to(plane)


def _control(control: Any, cut: Cut, made: dict[int, Any], notes: dict[str, None]) -> Any:
    """A copy of a chain of ControlNets whose pictures are cut to the crops; those that cannot be are left out."""
    if id(control) in made:
        return made[id(control)]
    before = getattr(control, "previous_controlnet", None)
    before = None if before is None else _control(before, cut, made, notes)
    hint = getattr(control, "cond_hint_original", None)
    if not isinstance(hint, Tensor) or hint.ndim != 4:
        notes["a control of another kind was left out: its picture cannot be cut to a face"] = None
        copy = before
    else:
        copy = control.copy()
        copy.cond_hint_original = cut(hint.float())
        copy.set_previous_controlnet(before)
        notes["control pictures were cut to the faces"] = None
    made[id(control)] = copy
    return copy


def plain(conditioning: list) -> list:
    """The text alone, for the inversion: no places, control or hooks, which belong to the restoration."""
    kept = ("pooled_output", "attention_mask", "width", "height", "crop_w", "crop_h", "target_width", "target_height")
    text, values = conditioning[0]
    return [[text, {name: values[name] for name in kept if name in values}]]
