"""What a user sets on DIIR's options nodes, beside the method's own request."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ....core.diir.request import DiirRequest
from ....drawing.pose import OPENPOSE

LEAVE, ANYBODY = "leave alone", "repair without identity"
STRANGERS = (LEAVE, ANYBODY)
AUTO = "auto"
PARSING, HULL, ELLIPSE = "parsing", "landmarks", "ellipse"
MASKS = (AUTO, PARSING, HULL, ELLIPSE)
#: of faces below this side, in pixels, nothing can be told
MIN_FACE_PX = 8


@dataclass(frozen=True)
class Control:
    """A landmark ControlNet, as *DIIR Landmark Control* gives it.

    Attributes:
        net: the host's CONTROL_NET. style: what is drawn for it, one of :data:`likeness.drawing.pose.STYLES`.
        strength, end: how strongly it acts, and the share of the steps after which it is off.
    """

    net: Any
    style: str = OPENPOSE
    strength: float = 0.8
    end: float = 1.0


@dataclass(frozen=True)
class Options:
    """What *DIIR Options* and *DIIR Landmark Control* give.

    Attributes:
        request: the method's own settings.
        good_enough: faces at least this similar to their person stay; above 1 none stays for that.
        strangers: one of :data:`STRANGERS`: what happens to faces that are none of the people given.
        people: the user's word on who is who, such as ``2,1``.
        where: MASK, only faces whose middle lies in it, or None.
        mask: one of :data:`MASKS`, how the head's outline is found; ``auto`` takes the first that is there.
        provider: of the face models, where no faces are given.
        faces_at_once: most crops of one model call.
        control: a landmark ControlNet, or None.
    """

    request: DiirRequest = field(default_factory=DiirRequest)
    good_enough: float = 1.1
    strangers: str = LEAVE
    people: str = ""
    where: Tensor | None = None
    mask: str = AUTO
    provider: str = AUTO
    faces_at_once: int = 8
    control: Control | None = None
