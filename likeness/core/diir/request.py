"""What a user asks of DIIR, as plain frozen data that both hosts fill and the core reads."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..errors import bad_input

MODES = ("exact", "fast")
STYLES = ("off", "latents", "paper")
CACHES = ("auto", "device", "host", "recompute")


@dataclass(frozen=True)
class DiirRequest:
    """How faces are repaired.

    Attributes:
        mode: ``"exact"`` starts from the inversion of the face (Alg. 2); ``"fast"`` from the face with noise on it,
            which needs no inversion: half the model rows.
        steps: of the DDIM schedule, for inversion and restoration alike; 30 as in the paper.
        guidance: classifier-free guidance of the restoration; 5 as in the paper, less brings less of the identity. The
            inversion always runs at 1.
        strength: share of the steps that is redrawn in the exact mode; less keeps more of the draft.
        fast_strength: the same in the fast mode. Noise hides the draft, so it starts later: .75.
        keep_style: ``"off"`` fuses latents by the mask (Eq. 6), ``"latents"`` also gives them the draft's colours
            inside it (Eq. 5), ``"paper"`` fuses self-attention outputs in the same way: the draft's style stays, and
            with it what was wrong with its colours.
        corrections: fixed-point corrections of every inversion step; 1 doubles its rows and brings it from about 33 dB
            to 52 dB of round trip.
        cache: where the paper mode keeps features: ``"device"``, ``"host"`` memory, or nowhere (``"recompute"``: one
            more row a step); ``"auto"`` takes the first of these with room. The result is the same.
        frame: side of the crop in heights of the face's box; 1.8 holds the head, not the body.
        feather: width of the mask's soft edge, as a share of the crop's side.
        upright: tilt of the eye line in degrees from which the crop is turned upright: models draw upright faces.
        max_face_px: only faces whose longer side is smaller are repaired, in pixels of the picture; larger ones gain
            nothing. 0 repairs all.
    """

    mode: str = "exact"
    steps: int = 30
    guidance: float = 5.0
    strength: float = 1.0
    fast_strength: float = 0.75
    keep_style: str = "off"
    corrections: int = 0
    cache: str = "auto"
    frame: float = 1.8
    feather: float = 3 / 128
    upright: float = 10.0
    max_face_px: int = 100

    def __post_init__(self) -> None:
        for name, values in (("mode", MODES), ("keep_style", STYLES), ("cache", CACHES)):
            if getattr(self, name) not in values:
                raise bad_input(f"DIIR: {name}", repr(getattr(self, name)), f"one of {', '.join(values)}", "Pick one.")
        for name, low, high in (
            ("steps", 1, 1000), ("guidance", 0, 100), ("strength", 0, 1), ("fast_strength", 0, 1),
            ("corrections", 0, 10), ("frame", 1, 10), ("feather", 0, 0.5), ("upright", 0, 180),
            ("max_face_px", 0, math.inf),
        ):  # fmt: skip
            self._check_range(name, low, high)
        if self.keep_style == "paper" and self.mode == "fast":
            raise bad_input(
                "DIIR: keep_style", "'paper' with mode 'fast'", "mode 'exact'",
                "The paper's mode fuses features of the inversion, which the fast mode leaves out: use keep_style "
                "'latents', or mode 'exact'.",
            )  # fmt: skip

    def _check_range(self, name: str, low: float, high: float) -> None:
        value = getattr(self, name)
        if not (isinstance(value, (int, float)) and low <= value <= high):
            expected = f"a number of at least {low}" if high == math.inf else f"a number from {low} to {high}"
            default = type(self).__dataclass_fields__[name].default
            raise bad_input(f"DIIR: {name}", repr(value), expected, f"Use {default:g} to start with.")

    @property
    def start(self) -> int:
        """Index of the first step that is restored, 0..steps; ``steps`` leaves the face as it is."""
        share = self.strength if self.mode == "exact" else self.fast_strength
        return self.steps - int(self.steps * share + 1e-9)

    @property
    def rows(self) -> int:
        """Model rows a face takes: inversion (exact mode) and both guidance rows of the restoration."""
        restored = 2 * (self.steps - self.start)
        return restored if self.mode == "fast" else restored + self.steps * (1 + self.corrections)
