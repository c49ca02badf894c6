"""The MagicID examples of ``workflows/``: on SD1.5 and SDXL with public weights, and on the miniature with ours."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lab.workflows import models, samples
from lab.workflows.diir_workflows import drawn, repaired
from lab.workflows.layout import Prompt, node
from lab.workflows.magicface_workflows import PERSON, Made
from lab.workflows.models import CLIP_VISION, INSTANTID_CONTROL, SD15, SDXL
from lab.workflows.notes import Note
from likeness.miniature.models import WEIGHTS

NAME = "likeness/magicid"
PLACES_TITLE, POSE_TITLE = "Who goes where", "Picture with the pose"
PHOTOS = {"Ann": samples.WOMAN, "Bob": samples.MAN}
NEGATIVE = "blurry, low quality, deformed"
Places = Callable[[Prompt, int], Prompt]
"""Puts the people of a chain, whose last has this number, into a text-to-image graph."""
PLUS_V2, INSTANTID = f"ipadapter/{models.FACEID}", f"instantid/{models.INSTANTID}"


def encoder(file: str, pack: str, looks: bool) -> Prompt:
    """Identity weights and the face models they need; CLIP-Vision where they look at the picture."""
    nodes, more = {"face_models": node("LikenessFaceModels", provider="insightface", pack=pack)}, {}
    if looks:
        nodes["vision"] = node("CLIPVisionLoader", clip_name=CLIP_VISION)
        more = {"clip_vision": ["vision", 0]}
    nodes["weights"] = node("LikenessLoadIdentityWeights", file=file, face_models=["face_models", 0], **more)
    return nodes


def person(n: int, name: str, image: list[Any], strength: float) -> Prompt:
    """One person of a chain, the n-th from 0."""
    before = {"identities": [f"identity{n - 1}", 0]} if n else {}
    return {
        f"identity{n}": node(
            "LikenessMagicIdIdentity", None, None,
            weights=["weights", 0], image=image, name=name, strength=strength, **before,
        )
    }  # fmt: skip


def photographed(names: tuple[str, ...], strength: float) -> Prompt:
    """People from the user's photos."""
    nodes: Prompt = {}
    for n, name in enumerate(names):
        nodes[f"photo{n}"] = node("LoadImage", f"Photo of {name}", [280, 330], image=PHOTOS[name])
        nodes |= person(n, name, [f"photo{n}", 0], strength)
    return nodes


def applied(graph: Prompt, last: int, **more: Any) -> Prompt:
    """The sampler of a graph given the model and the conditioning by MagicID Apply."""
    graph["apply"] = node(
        "LikenessMagicIdApply", None, None, model=["checkpoint", 0], positive=["positive", 0],
        negative=["negative", 0], strength=1.0, identities=[f"identity{last}", 0], **more,
    )  # fmt: skip
    graph["sampler"]["inputs"] |= {"model": ["apply", 0], "positive": ["apply", 1], "negative": ["apply", 2]}
    return graph


def saved() -> Prompt:
    """What was drawn."""
    return {"save": node("SaveImage", "With the people", [320, 360], images=["decode", 0], filename_prefix=NAME)}


def places_in(picture: str, last: int) -> Prompt:
    """The faces of a node's picture as places of a chain's people, and who gets which."""
    return {
        "faces": node("LikenessDetectFaces", None, None, image=[picture, 0]),
        "regions": node(
            "LikenessMagicIdRegions", None, None,
            where=["faces", 0], image=[picture, 0], identities=[f"identity{last}", 0], order="", grow=1.3,
        ),
        "who": node("PreviewImage", PLACES_TITLE, [320, 340], images=["regions", 1]),
    }  # fmt: skip


def on_draft(graph: Prompt, last: int) -> Prompt:
    """A draft without the people, whose faces are their places; then the same seed with them."""
    draft = {key: graph[key] for key in ("positive", "negative", "latent")}
    draft["draft"] = {**graph["sampler"], "inputs": dict(graph["sampler"]["inputs"])}
    return {
        **draft,
        "draft_decode": node("VAEDecode", "Draft", samples=["draft", 0], vae=["checkpoint", 2]),
        **places_in("draft_decode", last),
        **applied(graph, last, regions=["regions", 0]),
    }  # fmt: skip


def on_draft_posed(graph: Prompt, last: int) -> Prompt:
    """The same, with the draft's landmarks for the ControlNet, which keeps several heads apart."""
    graph = on_draft(graph, last)
    graph["apply"]["inputs"] |= {"pose": ["landmarks", 0]}
    return {**graph, **landmarks()}


def landmarks() -> Prompt:
    """The found faces as the picture that the ControlNet reads."""
    return {
        "landmarks": node("LikenessDrawLandmarks", landmarks=["faces", 0], style="OpenPose"),
        "pose": node("PreviewImage", "Pose", [320, 340], images=["landmarks", 0]),
    }


def posed(graph: Prompt, last: int) -> Prompt:
    """The pose of another picture: its head, out of the middle by a border, is where the person goes."""
    return {
        "posing": node("LikenessMiniatureSample", POSE_TITLE, None, **{**PERSON, "identity": 12}),
        "border": node(
            "ImagePadForOutpaint", "Head out of the middle", image=["posing", 0], left=128, top=0, right=0, bottom=128,
            feathering=0,
        ),
        **places_in("border", last),
        **landmarks(),
        **applied(graph, last, regions=["regions", 0], pose=["landmarks", 0]),
    }  # fmt: skip


def faceid_one() -> Prompt:
    """One person by FaceID-PlusV2."""
    graph = drawn("a photo of a woman in a red coat, portrait, in the snow", (512, 512), 1, 30, 7.0, NEGATIVE)
    return {
        "checkpoint": node("CheckpointLoaderSimple", ckpt_name=SD15),
        **encoder(PLUS_V2, "buffalo_l", looks=True),
        **photographed(("Ann",), 1.0),
        **applied(graph, 0),
        **saved(),
    }


def faceid_two() -> Prompt:
    """Two people on a draft's faces, then small faces repaired."""
    prompt = "a photo of a woman and a man walking in a park, full body"
    return {
        "checkpoint": node("CheckpointLoaderSimple", ckpt_name=SD15),
        **encoder(PLUS_V2, "buffalo_l", looks=True),
        **photographed(("Ann", "Bob"), 1.0),
        **on_draft(drawn(prompt, (768, 512), 1, 30, 7.0, NEGATIVE), 1),
        **repaired(["decode", 0], "a photo of {person}, portrait", identities=["identity1", 0]),
    }


def instantid() -> Prompt:
    """One person by InstantID, posed as another picture."""
    prompt = "a photo of a man in a blue suit, portrait, in an office"
    posed = {"control_net": ["control", 0], "pose": ["landmarks", 0]}
    return {
        "checkpoint": node("CheckpointLoaderSimple", ckpt_name=SDXL),
        **encoder(INSTANTID, "antelopev2", looks=False),
        **photographed(("Bob",), 0.8),
        "posing": node("LoadImage", POSE_TITLE, [280, 330], image=samples.WOMAN),
        "faces": node("LikenessDetectFaces", None, None, image=["posing", 0]),
        "landmarks": node("LikenessDrawLandmarks", landmarks=["faces", 0], style="InstantID"),
        "control": node("ControlNetLoader", "InstantID's ControlNet", control_net_name=INSTANTID_CONTROL),
        **applied(drawn(prompt, (1024, 1024), 1, 30, 5.0, NEGATIVE), 0, **posed),
        **saved(),
    }


# -- on the miniature --------------------------------------------------------------------------------------------------


def miniature(
    identities: tuple[int, ...], prompt: str, seed: int, face: str = "", places: Places | None = on_draft,
    wide: float = 1.0,
) -> Callable[[], Prompt]:
    """Drawn people by our own weights.

    Args:
        identities: numbers of held-out people. face: prompt of DIIR behind it, or empty.
        places: where the people are put; without it they act everywhere.
        wide: the picture's width, in heights.
    """

    def make() -> Prompt:
        from likeness.miniature.models import picture_size

        side, last = picture_size(), len(identities) - 1
        graph = drawn(prompt, (round(side * wide), side), seed, 20, 5.0, "")
        people: Prompt = {
            "face_models": node("LikenessFaceModels", provider="miniature (drawn people)"),
            "weights": node(
                "LikenessLoadIdentityWeights", file="miniature/magicid.safetensors", face_models=["face_models", 0]
            ),
        }
        for n, identity in enumerate(identities):
            people[f"photo{n}"] = node(
                "LikenessMiniatureSample", f"Person {n + 1}", None, **{**PERSON, "identity": identity}
            )
            people |= person(n, f"person {n + 1}", [f"photo{n}", 0], 1.0)
        placed = (places or applied)(graph, last)
        if places:
            placed["faces"]["inputs"] |= {"face_models": ["face_models", 0]}
        end = repaired(["decode", 0], face, identities=[f"identity{last}", 0]) if face else saved()
        return {"checkpoint": node("LikenessMiniatureLoader"), **people, **placed, **end}

    return make


RUN = "nothing to choose: the small model, its identity weights and the drawn people come with the pack. Press *Run*."
LICENCE = "The face models of insightface ({}) and these weights are for non-commercial research: read their licences."
FACEID = "choose an SD1.5 checkpoint and your photos; put the files below in their folders; install insightface."
PLACES = (
    "A draft without the people tells where heads are, and *MagicID Regions* gives each place to a person; *order* "
    "exchanges them. Then the same seed with the people in."
)
MINIATURE: dict[str, Made] = {
    "Demo - MagicID, one person": (
        miniature((35,), "a picture of a man wearing a red sweater, portrait, in the snow", 7, places=None),
        Note(
            "The person of one picture, drawn anew by what the identity encoder has read in the face.",
            RUN,
            "the person in the clothes and the place of the prompt.",
        ),
    ),
    "Demo - MagicID, two people": (
        miniature(
            (5, 8), "a picture of a woman wearing a red sweater and a man wearing a green suit, on the beach", 11
        ),
        Note(PLACES, RUN, "the draft with its regions, and the picture with both people."),
    ),
    "Demo - MagicID, three people": (
        miniature(
            (20, 35, 22),
            "a picture of a woman wearing a red dress and a man wearing a red sweater and a woman wearing a red dress, "
            "in a meadow",
            4, places=on_draft_posed, wide=1.5,
        ),
        Note(
            f"{PLACES} *Draw Landmarks* makes the draft's faces a pose, which keeps three heads apart: the identity "
            "weights bring the ControlNet that reads it.",
            RUN,
            "the draft with its regions, the pose, and the picture with all three people.",
        ),
    ),
    "Demo - MagicID, in a pose": (
        miniature(
            (9,), "a picture of a man wearing a red sweater, half body, in the snow", 7, places=posed
        ),
        Note(
            "One person in the pose of another picture: where its head is, the person's head goes. Both the model and "
            "the ControlNet of the identity weights are told who it is.",
            RUN,
            "the pose and the picture; another border moves the head.",
        ),
    ),
    "Demo - MagicID, then DIIR": (
        miniature(
            (35,), "a picture of a man wearing a red sweater, full body, in the snow", 10,
            face="a picture of {person}, portrait",
        ),
        Note(
            "The picture drawn with the person, then the small face repaired with the same identity.",
            RUN,
            "the picture before and repaired.",
        ),
    ),
}  # fmt: skip

WORKFLOWS: dict[str, Made] = {
    "MagicID - one person, SD1.5": (
        faceid_one,
        Note(
            "FaceID-PlusV2: the face of a photo in a new picture.",
            FACEID,
            "the person in the clothes and the place of the prompt.",
            LICENCE.format("buffalo_l"),
        ),
    ),
    "MagicID - two people, SD1.5": (
        faceid_two,
        Note(
            PLACES,
            FACEID,
            "the draft with its regions, and the picture with both people. *DIIR Face Repair* draws faces that are "
            "too small again, as the same people.",
            LICENCE.format("buffalo_l"),
        ),
    ),
    "MagicID - InstantID, SDXL": (
        instantid,
        Note(
            "InstantID's ControlNet reads the person instead of the text, in the pose of another picture. With several "
            "people each is read in their own region only.",
            "choose an SDXL checkpoint, a photo and a picture with the pose; put the files below in their folders; "
            "install insightface.",
            "the person in that pose.",
            LICENCE.format("antelopev2"),
        ),
    ),
    **(MINIATURE if (WEIGHTS / "magicid.safetensors").is_file() else {}),
}
