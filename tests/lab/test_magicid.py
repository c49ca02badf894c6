"""MagicID's commands: drawn people, samples from the data engine's members, what is measured."""

from __future__ import annotations

import io
import json
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support.magicid_tiny import tiny_model

from lab import magicid
from lab.evaluation import magicid_repair, magicid_sheet
from lab.evaluation.magicid import GROUPS, PLACED, SECTIONS, Lab, placed_cases
from lab.evaluation.magicid_directions import directions
from lab.evaluation.magicid_rivals import inpaint
from lab.evaluation.magicid_sheet import PEOPLE, WAYS, sheet_of
from lab.evaluation.magicid_tables import bars, group_table, report, single_table
from lab.evaluation.store import PictureFile
from lab.idzoom.annotations import landmarks_of
from lab.magicid_people import MODES, Painter, Size, cached
from lab.magicid_shards import Reader, members_of
from lab.magicid_validation import validation_sheet
from lab.people import pair_cases
from likeness.core.errors import LikenessError
from likeness.faces.interface import Face
from likeness.hosts.diffusers.miniature import miniature
from likeness.miniature.models import weights_file
from likeness.miniature.world.placed import HEADS
from likeness.miniature.world.render import ground_truth
from likeness.training.magicid.request import Phase


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """Four drawn samples, and the same from the file they are kept in."""
    file = tmp_path_factory.mktemp("people") / "people.pt"
    return [cached(miniature(), Size(0, 4), 5, file) for _ in range(2)]


def test_drawn_samples_hold_all_that_a_step_needs(drawn):
    for sample in drawn[0]:
        people = len(sample.vectors)
        assert sample.latent.shape == (4, 16, 16) and sample.text.shape == (77, 128)
        assert sample.vectors.shape == (people, 2, 128) and sample.regions.shape == (people, 16, 16)
        assert torch.allclose(sample.vectors.norm(dim=-1), torch.ones(people, 2), atol=1e-4)
        assert set(sample.poses) == set(MODES) and all(p.shape == (3, 128, 128) for p in sample.poses.values())
        assert all(bool(p.any()) for p in sample.poses.values())
        for region, box in zip(sample.regions, sample.boxes, strict=True):
            y, x = divmod(int(region.argmax()), 16)
            assert box[0] - 0.1 <= (x + 0.5) / 16 <= box[2] + 0.1 and box[1] - 0.2 <= (y + 0.5) / 16 <= box[3] + 0.2


def test_drawn_samples_are_kept(drawn):
    for a, b in zip(*drawn, strict=True):
        assert torch.equal(a.latent, b.latent) and torch.equal(a.vectors, b.vectors) and a.scene == b.scene


def test_scenes_show_other_people_and_nothing_else_new():
    painter = Painter(miniature(), 3)
    pictures = painter.pictures(Size(2, 1))
    assert [scene for _, scene in pictures] == [-1, 0, 0, 0, 0, 1, 1, 1, 1]
    first, second = pictures[1][0], pictures[2][0]
    assert first.caption == second.caption and first.scene == second.scene
    assert [f.identity for f in first.figures] != [f.identity for f in second.figures]


@pytest.mark.parametrize("people", [1, 2, 3])
def test_placed_people_lie_apart_and_in_the_picture(people):
    for case in placed_cases(8, 128, people):
        truths = ground_truth(case.picture, 128)
        assert len(truths) == len(case.people) == people
        assert [f.identity for f in case.picture.figures] == [p.identity for p in case.people]
        for figure, truth in zip(case.picture.figures, truths, strict=True):
            assert HEADS[people][0] <= figure.head <= HEADS[people][1]
            assert truth.box[0] >= -4 and truth.box[2] <= 132 and truth.box[1] >= -4
            assert truth.face.sum() > 0.3 * (truth.box[2] - truth.box[0]) * (truth.box[3] - truth.box[1])
        centres = [figure.centre[0] for figure in case.picture.figures]
        assert centres == sorted(centres)


# --- what the data engine writes --------------------------------------------------------------------------------------


def members(width: int = 96, height: int = 64, embedder: str = "miniature") -> dict[str, bytes]:
    """A sample with two faces, the largest first and to the right."""
    faces = [Face((52.0, 10.0, 76.0, 44.0), 0.9, torch.rand(5, 2) * 20 + 50), Face((18.0, 20.0, 30.0, 38.0), 0.8)]
    faces[1] = Face(faces[1].box, 0.8, torch.rand(5, 2) * 10 + 20)
    pixels = np.random.default_rng(0).integers(255, size=(height, width, 3), dtype=np.uint8)
    out = {"image.png": png(pixels), "skeleton.png": png(pixels), "caption.txt": b"a picture of two people"}
    for face, ending in zip(faces, ("mask.png", "mask.2.png"), strict=True):
        mask = np.zeros((height, width), np.uint8)
        x0, y0, x1, y1 = map(int, face.box)
        mask[y0:y1, x0:x1] = 255
        out[ending] = png(mask)
    buffer = io.BytesIO()
    np.save(buffer, np.eye(2, 128, dtype=np.float32))
    told = landmarks_of(faces, width, height)
    return {**out, "embedding.npy": buffer.getvalue(), "landmarks.json": json.dumps(told).encode(),
            "json": json.dumps({"embedder": embedder}).encode()}  # fmt: skip


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def shard(path: Path, samples: dict[str, dict[str, bytes]]) -> Path:
    with tarfile.open(path, "w") as file:
        for key, parts in samples.items():
            for ending, data in parts.items():
                entry = tarfile.TarInfo(f"{key}.{ending}")
                entry.size = len(data)
                file.addfile(entry, io.BytesIO(data))
    return path


@pytest.fixture(scope="module")
def reader() -> Reader:
    return Reader(miniature(), 64)


def test_a_shard_and_a_folder_give_the_same_samples(reader, tmp_path):
    parts = {"a": members(), "b": members()}
    shard(tmp_path / "0.tar", parts)
    folder = tmp_path / "files"
    folder.mkdir()
    for key, sample in parts.items():
        for ending, data in sample.items():
            (folder / f"{key}.{ending}").write_bytes(data)
    assert [key for key, _ in members_of(tmp_path / "0.tar")] == [key for key, _ in members_of(folder)] == ["a", "b"]
    one, two = reader.samples(tmp_path / "0.tar"), reader.samples(folder)
    assert len(one) == len(two) == 2 and torch.equal(one[0].latent, two[0].latent)


def test_people_stand_left_to_right_with_their_own_vectors(reader):
    sample = reader.sample(members())
    assert sample.vectors[:, 0].argmax(dim=1).tolist() == [1, 0]  # the smaller, second face stands to the left
    assert sample.boxes[0].tolist() == pytest.approx([2 / 64, 20 / 64, 14 / 64, 38 / 64])  # 16 pixels are cut off
    columns = [float((region.sum(0) * torch.arange(8)).sum() / region.sum()) for region in sample.regions]
    assert columns[0] < columns[1]
    assert sample.poses["landmarks"].any() and sample.poses["skeleton"].shape == (3, 64, 64)


def test_a_broken_sample_costs_itself_only(reader, tmp_path, caplog):
    broken = {k: v for k, v in members().items() if k != "embedding.npy"}
    shard(tmp_path / "0.tar", {"a": broken, "b": {**members(), "image.png": b"nothing"}, "c": members()})
    with caplog.at_level("WARNING", logger="likeness"):
        assert len(reader.samples(tmp_path)) == 1
    assert "sample a" in caplog.text and "embedding.npy" in caplog.text and "sample b" in caplog.text


def test_nothing_to_read_is_told(reader, tmp_path):
    with pytest.raises(LikenessError, match="shards"):
        reader.samples(tmp_path)
    (tmp_path / "0.tar").write_bytes(b"no tar")
    with pytest.raises(LikenessError, match="whole shard"):
        reader.samples(tmp_path)


def test_vectors_of_two_recognisers_do_not_mix(tmp_path):
    shard(tmp_path / "0.tar", {"a": members(), "b": members(embedder="other")})
    reader = Reader(miniature(), 64)
    assert len(reader.samples(tmp_path)) == 1 and reader.embedder == "miniature"


# --- commands ---------------------------------------------------------------------------------------------------------


def test_a_checkpoint_needs_data(tmp_path):
    assert magicid.main(["train", "--checkpoint", str(tmp_path), "--out", str(tmp_path / "out")]) == 2


def test_options_change_the_recipe():
    read = magicid.training_parser().parse_args
    assert magicid.config_of(read([])) == magicid.MINIATURE
    config = magicid.config_of(read(["--places", "unet", "--steps", "10", "--batch", "4"]))
    assert config.steps == 10 and config.batch == 4 and config.places == ("unet",)
    paper = magicid.config_of(read(["--checkpoint", "some", "--places", "both", "--clone-every", "0"]))
    assert paper.batch == 128 and paper.places == ("unet", "control")
    assert not any(phase.clone_every for phase in paper.phases)


def test_train_leaves_weights_log_and_state(tmp_path, monkeypatch):
    monkeypatch.setattr(magicid, "HELD_OUT", Size(0, 2))
    common = ["train", "--out", str(tmp_path), "--scenes", "1", "--singles", "4", "--batch", "2"]
    assert magicid.main([*common, "--steps", "4", "--measure-every", "4"]) == 0
    weights = magicid.load_magicid(tmp_path / "magicid.safetensors")
    assert set(weights.attention) == {"unet", "control"} and weights.embedder == "miniature" and weights.control
    assert (tmp_path / "magicid.safetensors").stat().st_size <= 14e6
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert any("gap" in row for row in rows)
    sheets = {f"{row['step']:07d}.jpg" for row in rows if "gap" in row}
    assert {file.name for file in (tmp_path / "validation").iterdir()} == sheets
    assert magicid.main([*common, "--steps", "4", "--resume"]) == 0
    assert magicid.main([*common, "--steps", "5", "--resume"]) == 2


def test_validation_pictures_show_the_people_and_cost_no_random_number(drawn):
    pipeline, weights = miniature(), magicid.load_magicid(weights_file("magicid"))
    held_out, empty = drawn[0][:2], pipeline.conditioning([""]).context[0].cpu()
    before = torch.get_rng_state()
    made = {}
    for places, modes in ((("unet",), ()), (("control",), ("skeleton",))):
        phase = Phase("some", 1, places, modes)
        made[places] = np.asarray(validation_sheet(pipeline, weights, held_out, empty, phase, "some"), dtype=float)
    assert torch.equal(torch.get_rng_state(), before)
    nobody = replace(weights, attention={})
    plain = np.asarray(validation_sheet(pipeline, nobody, held_out, empty, Phase("some", 1, ("unet",)), "some"))
    assert made["unet",].shape == plain.shape and np.abs(made["unet",] - plain).mean() > 1
    assert np.abs(made["unet",] - made["control",]).mean() > 1


def test_the_controlnet_alone_learns_beside_a_finished_encoder(tmp_path, monkeypatch):
    monkeypatch.setattr(magicid, "HELD_OUT", Size(0, 2))
    shipped, folder = weights_file("magicid"), str(tmp_path)
    common = ["train", "--out", folder, "--scenes", "0", "--singles", "2", "--batch", "1", "--measure-every", "0"]
    assert magicid.main([*common, "--steps", "1", "--places", "control", "--encoder", str(shipped)]) == 0
    ours, theirs = (magicid.load_magicid(f).encoder.state_dict() for f in (tmp_path / "magicid.safetensors", shipped))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[k].float(), theirs[k].float()) for k in ours)
    with pytest.raises(LikenessError, match="--encoder"):
        magicid.take_encoder(tiny_model(), shipped)


def test_tensorboard_is_written_or_its_package_named(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(magicid, "HELD_OUT", Size(0, 2))
    command = ["train", "--out", str(tmp_path), "--scenes", "0", "--singles", "2", "--batch", "1", "--places", "unet",
               "--steps", "2", "--measure-every", "2", "--tensorboard"]  # fmt: skip
    monkeypatch.setattr(magicid, "find_spec", lambda name: None)
    assert magicid.main(command) == 2 and "extra 'training'" in caplog.text
    monkeypatch.undo()
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    monkeypatch.setattr(magicid, "HELD_OUT", Size(0, 2))
    assert magicid.main(command) == 0
    events = accumulator.EventAccumulator(str(next(tmp_path.rglob("events.out.tfevents.*")).parent))
    events.Reload()
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    gap, = events.Scalars("gap")
    assert gap.step == 2 and gap.value == pytest.approx(next(row["gap"] for row in rows if "gap" in row), rel=1e-3)


SINGLE = {"similarity": [0.5, 0.3], "first": [1.0, 0.0], "colour": [0.1, 0.1], "prompt": [1.0, 0.8]}
GROUP = {"placed": [1.0, 1.0, 0.0, 0.0], "own": [0.4, 0.2], "other": [0.0, 0.3], "wrong": [0.0, 1.0],
         "prompt": [1.0, 1.0]}  # fmt: skip


def test_tables_of_what_was_measured():
    records = {"single/0/UNet": SINGLE, "single/0/vanilla": {**SINGLE, "prompt": [1.0, 0.9]}, "two/0/MGMICA": GROUP}
    assert "| UNet | 0.40" in single_table({"0": {"UNet": SINGLE}}, 12)
    assert "| MGMICA | 50% of 4 | 0.30 | 0.15 | 1 of 2 | 0.15 |" in group_table({"0": {"MGMICA": GROUP}})
    text = report(records, 20)
    assert SECTIONS["single"].title in text and SECTIONS["two"].title in text and PLACED == 0.5
    assert "| prompt lost by it | 0.05 | at most 0.03 | **no** |" in text
    assert [bar.held for bar in bars(records)] == [False, False, False, False, False, False, False]
    assert [bar.name for bar in bars({"gap/held out/control": {"gap": 0.08}}) if bar.held] == [
        "goal: paired gap of the ControlNet, share of its loss"
    ]


def repaired(similarity: float) -> dict:
    return {"similarity": similarity, "found": True, "identical outside": True, "seam": 1.0}


def test_repairs_with_an_identity_are_compared_draft_by_draft():
    gains = {magicid_repair.BEFORE: 0.0, magicid_repair.NOBODY: 0.1, magicid_repair.IDENTITY: 0.5,
             magicid_repair.REFERENCES: 0.4}  # fmt: skip
    records = {f"DIIR/{i}/{name}": repaired(0.1 * i + gain) for i in range(3) for name, gain in gains.items()}
    records |= {f"DIIR/3/{name}": {} for name in gains}  # no face in the draft
    text = report(records, 15)
    assert "3 full-body drafts" in text
    assert "| IDENTITY | 0.60 (0.50 to 0.70) | +0.50 (+0.50 to +0.50) | 100% | 100% | 1.00 |" in text
    assert "- IDENTITY over no identity, paired: +0.40 (+0.40 to +0.40)" in text
    seen = [one.measured for one in directions(records)]
    assert seen[0] == "similarity, IDENTITY less before: +0.50 (+0.50 to +0.50), n = 3"


def test_a_face_is_repaired_by_the_whole_identity():
    lab = Lab(miniature(), magicid.load_magicid(weights_file("magicid")))
    person = pair_cases(1, lab.pipeline.side)[0].people[0]
    target = magicid_repair.Repairs(lab.pipeline, lab.weights, lab.placed).target(person)
    assert target.identity.region is None and target.identity.tokens.shape == (magicid.TOKENS, 128)
    assert target.attention is lab.weights.attention["unet"] and person.word in target.prompt


def test_inpainting_keeps_what_is_outside_and_draws_what_is_inside():
    pipeline, images = miniature(), torch.rand(1, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    region = torch.zeros(128, 128)
    region[32:96, 32:96] = 1
    seen = []

    def denoise(x: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        seen.append(x)
        return x

    noise = pipeline.noise([1])
    for start in (0, 2):
        seen.clear()
        drawn = inpaint(pipeline, images, noise, region, denoise, pipeline.scheduler(4), start)
        assert len(seen) == 4 - start
        assert torch.equal(drawn[..., region == 0], images[..., region == 0])
        assert float((drawn - images)[..., region == 1].abs().mean()) > 0.05
        known, scheduler = pipeline.encode(images), pipeline.scheduler(4)
        for x, timestep in zip(seen, scheduler.timesteps[start:], strict=True):
            outside = scheduler.add_noise(known, noise, timestep[None])
            assert torch.allclose(x[..., :3, :], outside[..., :3, :])


def test_each_way_of_two_people_draws_and_is_shown(tmp_path, monkeypatch):
    """Two steps of the trained weights: each way makes another picture of the same pair."""
    pipeline, weights = miniature(), magicid.load_magicid(weights_file("magicid"))
    lab, store = Lab(pipeline, weights, None, steps=2), PictureFile(tmp_path)
    section = {"two": replace(SECTIONS["two"], variants={way: GROUPS[way] for way in WAYS})}
    monkeypatch.setattr(magicid.measure, "SECTIONS", section)
    for key, compute in magicid.measure.work(lab, 1, 1, ["two"], store.keep):
        store.record(key, compute)
    assert all(len(record["placed"]) == 2 for record in store.records.values())
    drawn = [np.asarray(Image.open(store.path("two 0", name))) for name in (*PEOPLE, *WAYS)]
    assert all((a != b).any() for i, a in enumerate(drawn) for b in drawn[i + 1 :])
    monkeypatch.setattr(magicid_sheet, "SHOWN", ("0",))
    assert sheet_of(store) is not None and sheet_of(PictureFile(tmp_path / "none")) is None
