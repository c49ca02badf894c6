"""What a user sets on *DIIR Options*, beside the method's own request."""

from __future__ import annotations

from dataclasses import dataclass, field

from ....core.diir.request import DiirRequest
from ....drawing.pose import OPENPOSE

LEAVE, ANYBODY = "leave alone", "repair without identity"
STRANGERS = (LEAVE, ANYBODY)
AUTO = "auto"
PARSING, HULL, ELLIPSE = "parsing", "landmarks", "ellipse"
MASKS = (AUTO, PARSING, HULL, ELLIPSE)


@dataclass(frozen=True)
class Options:
    """The widgets of *DIIR Options*.

    Attributes:
        request: the method's own settings.
        min_face_px: faces smaller than this stay. count: most faces of one picture, the largest; 0 is all.
        good_enough: faces at least this similar to their person stay; above 1 none stays for that.
        strangers: one of :data:`STRANGERS`: what happens to faces that are none of the people given.
        people: the user's word on who is who, such as ``2,1``.
        mask: one of :data:`MASKS`, how the head's outline is found; ``auto`` takes the first that is there.
        provider: of the face models, where no faces are given.
        faces_at_once: most crops of one model call.
        landmark_style: what is drawn for ``control_net``. control_strength, control_end: how strongly it acts, and the
            share of the steps after which it is off.
    """

    request: DiirRequest = field(default_factory=DiirRequest)
    min_face_px: int = 8
    count: int = 0
    good_enough: float = 1.1
    strangers: str = LEAVE
    people: str = ""
    mask: str = AUTO
    provider: str = AUTO
    faces_at_once: int = 8
    landmark_style: str = OPENPOSE
    control_strength: float = 0.8
    control_end: float = 1.0
