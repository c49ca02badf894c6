"""Face nodes on a running server: types joined as a user joins them, and a picture with nobody in it."""

from __future__ import annotations

from typing import Any

import pytest

from lab.workflows.layout import node
from lab.workflows.server import Server
from lab.workflows.workflow import input_options


def defaults(info: dict[str, Any], **given: Any) -> dict[str, Any]:
    """What the front end would send for a node whose inputs nobody has touched."""
    told = {}
    for key, kind, options in input_options(info):
        choices = options.get("options") or (kind if isinstance(kind, list) else None)
        if "default" in options or choices:
            told[key] = options.get("default", choices and choices[0])
    return {**told, **given}


def prompt(info: dict[str, Any], style: str, which: str) -> dict[str, Any]:
    """A drawn portrait and an empty picture in one batch; what is found goes into Detect Faces once more, as boxes."""
    person = defaults(info["LikenessMiniatureSample"], shot="portrait", scene="studio", style="flat")
    return {
        "person": node("LikenessMiniatureSample", None, **person),
        "models": node("LikenessFaceModels", None, provider="miniature (drawn people)"),
        "empty": node("EmptyImage", None, width=128, height=128, batch_size=1, color=8421504),
        "scaled": node("ImageScale", None, image=["person", 0], upscale_method="bilinear", width=128, height=128,
                       crop="disabled"),
        "batch": node("ImageBatch", None, image1=["scaled", 0], image2=["empty", 0]),
        "detect": node("LikenessDetectFaces", None, image=["batch", 0], face_models=["models", 0], which=which),
        "again": node("LikenessDetectFaces", None, image=["batch", 0], found=["detect", 3]),
        "drawn": node("LikenessDrawLandmarks", None, landmarks=["detect", 0], style=style),
        "mask": node("MaskToImage", None, mask=["again", 2]),
        "show": node("PreviewImage", None, images=["drawn", 0]),
        "show_mask": node("PreviewImage", None, images=["mask", 0]),
    }  # fmt: skip


CASES = [("OpenPose", "", 1), ("InstantID", "1", 1), ("OpenPose", "2", 0)]


@pytest.mark.parametrize(("style", "which", "people"), CASES)
def test_faces_go_from_node_to_node(
    server: Server, object_info: dict[str, Any], style: str, which: str, people: int
) -> None:
    run = server.run_prompt(prompt(object_info, style, which))
    pictures = server.pictures(run)
    assert len(pictures) == 4, "two of landmarks, two of masks"
    lit = [int(picture.max() > 0) for picture in pictures]
    assert sorted(lit) == [0] * (4 - 2 * people) + [1] * (2 * people), "nobody is found in the empty picture"
