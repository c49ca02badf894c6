"""Clone Face Tuning: what is measured of two trainings, and what the page says of it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from lab import magicid
from lab.evaluation import clone_faces
from lab.evaluation.directions import OPPOSITE, SEEN
from lab.evaluation.magicid import Lab
from lab.magicid_people import Size, cached
from likeness.formats.magicid import load_magicid
from likeness.hosts.diffusers.magicid import load_control
from likeness.hosts.diffusers.miniature import miniature
from likeness.miniature.models import weights_file


def test_an_identity_in_one_face_is_seen_there_alone():
    part = torch.zeros(1, 8, 16)
    part[:, 2:6, 2:6] = 3.0  # the left half's face; the right half's stays dark
    part[:, 0] = 1.0
    boxes = torch.tensor([[0.25, 0.25, 0.75, 0.75]])
    left, right, outside = clone_faces.in_faces(part.flatten(1), (8, 16), boxes)
    assert left == pytest.approx(3.0) and right == 0.0 and outside == pytest.approx(16 / (128 - 32))


def test_attention_of_a_clone_picture(tmp_path):
    weights, pipeline = load_magicid(weights_file("magicid")), miniature()
    lab = Lab(pipeline, weights, load_control(pipeline.unet, weights))
    drawn = cached(pipeline, Size(0, 3), 5, tmp_path / "people.pt")
    sample = next(sample for sample in drawn if len(sample.vectors) == 1)
    told = clone_faces.attention(lab, sample, 0)
    assert set(told) == {"relative", "variation", "fainter", "brighter"}
    assert all(len(values) == 3 and min(values) > 0 for values in told.values())
    assert all(a <= b for a, b in zip(told["fainter"], told["brighter"], strict=True))
    assert clone_faces.attention(lab, sample, 0) == told


def test_two_trainings_are_held_against_each_other():
    records = {"clone training/0/with": {"steps": 9, "minutes": 2.0, "every": 10},
               "clone training/0/without": {"steps": 9, "minutes": 1.0, "every": 0}}  # fmt: skip
    for i in range(6):
        for name, less in (("with", 0.0), ("without", 0.1)):
            seen = {"placed": [1.0, 0.0], "own": [0.5 - less], "other": [0.0], "wrong": [], "prompt": [1.0]}
            lit = {"relative": [0.2 + less], "variation": [0.3], "fainter": [1.2 + less + i / 100], "brighter": [2.0]}
            records |= {f"clone two/{i}/{name}": seen, f"clone attention/{i}/{name}": lit}
    text = clone_faces.report(records, 15)
    assert "Two trainings of 9 and 9 steps" in text and "every 10th step" in text
    assert "| two side by side: own | 0.500 | 0.400 | +0.100 (+0.100 to +0.100) | 6 |" in text
    assert "| two side by side: FaceSim | 0.250 | 0.200 | +0.050 (+0.050 to +0.050) | 6 |" in text
    assert "| the first over the second | 0.667 | 1.000 | -0.333 (-0.333 to -0.333) | 6 |" in text
    assert "wrong among placed" not in text and "two anywhere" not in text  # nothing was seen to measure
    verdicts = {one.source: one.verdict for one in clone_faces.directions(records)}
    assert verdicts == {"Eq. 4": SEEN, "Fig. 5": OPPOSITE, "Table 3": SEEN}
    assert not clone_faces.report({}, 15) and not clone_faces.directions({})


def test_clone_faces_need_a_controlnet(tmp_path, monkeypatch, caplog):
    file = weights_file("magicid")
    whole = load_magicid(file)
    unet = replace(whole, attention={"unet": whole.attention["unet"]})
    monkeypatch.setattr(magicid, "load_magicid", lambda path: unet)
    assert magicid.main(["prove", "--out", str(tmp_path), "--clone-faces", str(file), str(file)]) == 2
    assert "without a ControlNet" in caplog.text
