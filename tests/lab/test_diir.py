"""The DIIR commands: cases of the proof, what is measured of them, tables, resuming."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from PIL import Image

from lab import diir
from lab.benchmarks import diir as benchmark
from lab.evaluation import diir as measure
from lab.evaluation import diir_tables
from lab.evaluation.diir import Draft, Lab
from lab.evaluation.diir_tables import bars, report
from likeness.core.diir.request import DiirRequest
from likeness.faces.interface import Face
from likeness.hosts.diffusers.miniature import miniature


@pytest.fixture(scope="module")
def lab() -> Lab:
    return Lab(miniature())


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every repair in two steps."""
    steps = {"steps": 2}
    for name in ("VARIANTS", "STYLED"):
        table = {
            key: (request and DiirRequest(**{**vars(request), **steps}), *rest)
            for key, (request, *rest) in getattr(measure, name).items()
        }
        monkeypatch.setattr(measure, name, table)
    plain = measure.repair_faces
    monkeypatch.setattr(
        measure, "repair_faces",
        lambda pipeline, pictures, repairs, request=None: plain(
            pipeline, pictures, repairs, DiirRequest(**{**vars(request or DiirRequest()), **steps})),
    )  # fmt: skip


def drawn_draft(lab: Lab, number: int = 0) -> Draft:
    """A picture drawn by hand of the world instead of by the model."""
    image, faces, people = measure.group(number, 128)
    _, picture = measure.full_body(number, 128)
    return Draft(image, faces[0], people[0], picture, 1)


def test_cases_are_held_out_small_and_repeat_themselves() -> None:
    for number in range(6):
        person, picture = measure.full_body(number, 128)
        assert person.identity.held_out and picture.shot == "full body" and not picture.figures[0].expression
        assert picture.figures[0].item is None or picture.figures[0].item.kind not in measure.HIDING
        assert picture.caption == measure.full_body(number, 128)[1].caption
        image, faces, people = measure.group(number, 128)
        assert len(faces) == len(people) == 3 and torch.equal(image, measure.group(number, 128)[0])
        assert all(face.size[1] < 40 for face in faces)
        assert torch.equal((image * 255).round() / 255, image), "as a file holds it"


@pytest.mark.parametrize("degrees", measure.ANGLES)
def test_a_tilted_case_knows_where_its_face_is(lab: Lab, degrees: int) -> None:
    sharp, image, face, _ = measure.tilted(0, degrees, 128)
    assert math.isclose(abs(face.tilt), degrees, abs_tol=0.5)
    upright = measure.cut(sharp, measure.crop_of(face, DiirRequest()), 128)
    (found, *_) = lab.models.detector.detect(upright[None])[0]
    assert abs(found.tilt) < 8, "it stands upright in its crop"
    assert abs(found.centre[0] - 64) < 8 and abs(found.centre[1] - 0.46 * 128) < 8
    assert not torch.equal(image, sharp)


def test_what_is_told_of_a_picture(lab: Lab) -> None:
    draft = drawn_draft(lab)
    nothing = measure.outcome(lab, draft, draft.image, torch.zeros(128, 128))
    assert nothing["identical outside"] and nothing["seam"] is None
    other = draft.image.clone()
    other[:, 0, 0] += 0.1
    assert not measure.outcome(lab, draft, other, torch.zeros(128, 128))["identical outside"]
    ring = torch.zeros(128, 128)
    ring[30:60, 30:60] = 0.3
    edge = draft.image.clone()
    edge[:, 40:50, 40:50] = torch.randint(0, 2, (3, 10, 10)).float()
    assert measure.seam(draft.image, edge, ring) > 1.5 and measure.seam(draft.image, draft.image, ring) == 1
    person = draft.person
    itself = lab.similarity(person.image, Face(person.box, 1.0), person)
    assert itself > 0.9 > lab.similarity(draft.image, draft.face, person)


def test_the_proof_goes_on_where_it_was_cut_off(
    short: None, lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(measure, "make_draft", lambda lab, number, kind, style="flat": drawn_draft(lab, number % 7))
    for module in (measure, diir_tables):
        monkeypatch.setattr(module, "ANGLES", (30,))
    assert diir.main(["prove", "--people", "1", "--out", str(tmp_path)]) == 0
    tables = (tmp_path / "tables.md").read_text("utf-8")
    assert "### Bars" in tables and "outside the mask | 1.00" in tables
    assert "### Drawn groups of three strangers, 1 pictures" in tables
    assert Image.open(tmp_path / "vanilla.png").width > 1000
    results = json.loads((tmp_path / "results.json").read_text("utf-8"))
    assert {bar["name"] for bar in results["bars"]} >= {"gain, MagicFace drafts", "style seen untold, paper mode"}
    lines = (tmp_path / "records.jsonl").read_text("utf-8").splitlines()
    (tmp_path / "records.jsonl").write_text("\n".join([*lines[:-3], lines[-3][:20]]) + "\n", encoding="utf-8")
    computed = []
    plain = diir.Store.record

    def record(self: diir.Store, key: str, compute) -> dict:
        computed.extend([] if key in self.records else [key])
        return plain(self, key, compute)

    monkeypatch.setattr(diir.Store, "record", record)
    assert diir.main(["prove", "--people", "1", "--out", str(tmp_path)]) == 0
    assert len(computed) == 3, "only what was lost is measured again"
    again = json.loads((tmp_path / "results.json").read_text("utf-8"))
    assert again["records"].keys() == results["records"].keys()
    assert report(again["records"]) in capsys.readouterr().out and len(bars(again["records"])) == 11


def test_demo_shows_before_and_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(measure, "make_draft", lambda lab, number, kind, steps: drawn_draft(lab, number))
    assert diir.main(["demo", "--people", "1", "--steps", "2", "--out", str(tmp_path)]) == 0
    assert "bit for bit the same" in capsys.readouterr().out
    assert Image.open(tmp_path / "diir.png").height > 200


def test_benchmark_keeps_its_bounds(capsys: pytest.CaptureFixture[str]) -> None:
    assert benchmark.main(["--steps", "2", "--faces", "2"]) == 0
    shown = capsys.readouterr().out
    assert "| default | 8 | 6 + 2 references |" in shown, "2 inverted, 4 restored, 2 of the references"
    assert "| paper mode, recomputed | 10 | 6 + 2 references + 2 again |" in shown
    assert "image-to-image inpainting, strength .75, nobody" in shown


def test_inpainting_beside_it_is_the_fast_mode() -> None:
    """The comparison's own loop, on diffusers' scheduler, redraws the same crop."""
    pipeline = miniature()
    bench = benchmark.Bench(pipeline, 6, 1)
    request = DiirRequest(mode="fast", steps=6)
    plain = benchmark.inpaint(pipeline, bench.pictures[0], request)[0]
    ours = benchmark.repair_faces(
        pipeline, bench.pictures[:1], [benchmark.Repair(0, benchmark.HEAD)], request
    ).after[0]
    assert float((plain - ours).abs().mean()) < 0.05
