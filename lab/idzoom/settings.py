"""What a run of the engine lets through, and who annotates it."""

from __future__ import annotations

from dataclasses import dataclass

#: What a sample is made of besides its picture; each may be named in ``optional``.
CAPTION, POSE = "caption", "pose"
POSE_PROVIDERS = ("truth", "sidecar", "wholebody", "landmarks")
CAPTION_PROVIDERS = ("truth", "sidecar", "model")
MASK_PROVIDERS = ("auto", "truth", "parser", "ellipse")
FACE_PROVIDERS = ("auto", "insightface", "opencv", "facenet", "mediapipe", "dlib", "miniature", "truth")


@dataclass(frozen=True)
class Settings:
    """Everything that decides what becomes of a picture; one output folder has one.

    Attributes:
        least_side: pixels of the shorter side below which a picture is dropped.
        longest_side: larger pictures are brought down to it before anything else looks at them.
        most_pixels: pictures that say they have more are not decoded.
        most_bytes: larger files are not read.
        sharpness: least variance of the Laplacian of the grey picture, in squared grey levels.
        distance: bits of 256 by which the perceptual hashes of two pictures may differ for them to be duplicates;
            -1 lets duplicates through.
        most_faces: pictures with more faces are dropped, and so are those with none.
        least_face: pixels of the shorter side of a face's box below which a picture is dropped.
        faces: who finds faces, one of :data:`FACE_PROVIDERS`.
        effort: how hard small and tilted faces are looked for, see ``likeness/faces/search.py``.
        pose, caption: who is asked, in order, until one has an answer.
        mask: who tells the head's region; auto: the drawn truth, else a parser that has its weights, else an ellipse.
        captioner: folder of a captioning model for ``transformers``; empty: none.
        models: folder that holds the weights of face models as ComfyUI's ``models`` does; empty: none.
        optional: of ``caption`` and ``pose``, what a sample may lack.
    """

    least_side: int = 512
    longest_side: int = 2048
    most_pixels: int = 100_000_000
    most_bytes: int = 256 * 2**20
    sharpness: float = 10.0
    distance: int = 16
    most_faces: int = 1
    least_face: int = 48
    faces: str = "auto"
    effort: str = "auto"
    pose: tuple[str, ...] = ("truth", "sidecar", "wholebody")
    caption: tuple[str, ...] = ("truth", "sidecar", "model")
    mask: str = "auto"
    captioner: str = ""
    models: str = ""
    optional: tuple[str, ...] = ()
