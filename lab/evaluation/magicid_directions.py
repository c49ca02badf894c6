"""What MagicID's paper says of identities in their places, and what the miniature shows of it."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from lab.evaluation import clone_faces
from lab.evaluation.directions import Direction, direction, unshown
from lab.evaluation.magicid_repair import BEFORE, IDENTITY, NOBODY, SECTION, with_faces
from lab.evaluation.store import Records, whole_rows_of
from lab.magicid_people import SKELETON

#: section, (source, claim, what is compared), value of a record, variants a less b, least difference
CLAIMS: tuple[tuple[str, tuple[str, str, str], str, tuple[str, str], float], ...] = (
    ("single", ("Table 1", "an identity by the encoder, one person", "similarity, UNet less vanilla"),
     "similarity", ("UNet", "vanilla"), 0.0),
    ("single", ("Table 1", "the prompt is kept (no worse than by 0.05)", "prompt, UNet less vanilla"),
     "prompt", ("UNet", "vanilla"), -0.05),
    ("single", ("Eq. 1", "identity through the ControlNet, under a pose", "similarity, ControlNet less its pose alone"),
     "similarity", ("ControlNet", "pose alone"), 0.0),
    ("single", ("Table 1", "both places together are nearer than the UNet's alone", "similarity, both less UNet"),
     "similarity", ("both", "UNet"), 0.0),
    ("off centre", ("Sec. 3", "a pose places people where it says", "people placed, skeleton less vanilla"),
     "placed", (SKELETON, "vanilla"), 0.0),
    ("two", ("Table 3", "MGMICA gives each person their own place", "FaceSim, MGMICA less plain sum"),
     "face_sim", ("MGMICA", "plain sum"), 0.0),
    ("two anywhere", ("Table 3", "the same with a pose, anywhere", "FaceSim, MGMICA less plain sum, pose"),
     "face_sim", ("MGMICA, pose", "plain sum, pose"), 0.0),
    ("three", ("Table 3", "the same with three people", "FaceSim, MGMICA less plain sum, pose"),
     "face_sim", ("MGMICA, pose", "plain sum, pose"), 0.0),
    ("two", ("beyond the paper", "one pass for all is above inpainting one at a time",
             "FaceSim, MGMICA less one at a time, inpainted"),
     "face_sim", ("MGMICA", "one at a time, inpainted"), 0.0),
    ("two", ("beyond the paper", "and above MagicFace with the same regions",
             "FaceSim, MGMICA less MagicFace, the same regions"),
     "face_sim", ("MGMICA", "MagicFace, the same regions"), 0.0),
    (SECTION, ("Table 2", "small faces gain identity by DIIR with an identity", "similarity, IDENTITY less before"),
     "similarity", (IDENTITY, BEFORE), 0.0),
    (SECTION, ("Table 2", "and not because they are drawn again", "similarity, IDENTITY less no identity"),
     "similarity", (IDENTITY, NOBODY), 0.0),
)  # fmt: skip


def value(record: Mapping[str, list[float]], name: str) -> float:
    """A record's mean; ``face_sim``: a person whose place is empty counts 0, as in the paper's protocol."""
    if name == "face_sim":
        return sum(record["own"]) / len(record["placed"])
    return float(np.mean(record[name]))


def directions(records: Records) -> list[Direction]:
    """The statements whose sections were measured."""
    found = []
    for section, told, name, (a, b), least in CLAIMS:
        cases = [c for c in with_faces(whole_rows_of(records, section)).values() if a in c and b in c]
        if len(cases) > 1:
            found.append(direction(*told, [value(case[a], name) - value(case[b], name) for case in cases], least))
    return [
        *found,
        unshown("Table 1", "above IP-Adapter, InstantID, PhotoMaker and PuLID",
                "they are trained for Stable Diffusion"),
        *(clone_faces.directions(records) or [unshown(
            "Fig. 5", "with Clone Face Tuning one identity lights up several faces",
            "no training without it was measured (`run.py magicid prove --clone-faces`)",
        )]),
    ]  # fmt: skip
