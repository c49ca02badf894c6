"""The persona command and its evaluation on tiny random models."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from PIL import Image
from support.persona_tiny import tiny_host

from lab import persona as cli
from lab.evaluation import persona as evaluation
from lab.people import draw_person
from lab.persona_defaults import WORLD_TANDEM, WORLD_TEMPLATES
from likeness.training.persona.identity import Identifier
from likeness.training.persona.photos import Photo


@pytest.fixture
def tiny(monkeypatch):
    """The command works on a tiny host of 64-pixel pictures."""
    host = tiny_host()
    monkeypatch.setattr(cli, "base_model", lambda options: host)
    return host


@pytest.fixture
def photo_files(tmp_path):
    Image.new("RGB", (50, 70), (200, 120, 90)).save(tmp_path / "a.png")
    mask = Image.new("L", (50, 70), 0)
    mask.paste(255, (10, 10, 40, 60))
    mask.save(tmp_path / "m.png")
    Image.new("L", (9, 9), 0).save(tmp_path / "empty.png")
    return tmp_path


def train(folder, *more):
    given = ["--image", str(folder / "a.png"), "--mask", str(folder / "m.png"), "--out", str(folder / "out")]
    return cli.main(["train", *given, "--steps", "2", "--batch", "1", *more])


def test_train_then_play(tiny, photo_files):
    assert train(photo_files, "--name", "ada") == 0
    saved = photo_files / "out" / "ada.safetensors"
    assert saved.is_file() and not (photo_files / "out" / "ada.state").exists()
    played = ["play", "--persona", str(saved), "--prompt", "a photo of S*", "--out", str(photo_files / "out")]
    assert cli.main([*played, "--play-steps", "2"]) == 0
    assert Image.open(photo_files / "out" / "ada_1.png").size == (64, 64)


def test_interrupted_training_resumes(tiny, photo_files, monkeypatch):
    reporter = cli.Reporter.__call__

    def stop(self, report):
        reporter(self, report)
        if report.step == 1:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(cli.Reporter, "__call__", stop)
        with pytest.raises(KeyboardInterrupt):
            train(photo_files)
    assert (photo_files / "out" / "persona.state").is_file()
    assert train(photo_files, "--resume") == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train", "--image", "none.png", "--mask", "none.png"], "readable picture"),
        (["train", "--image", "{}/a.png", "--mask", "{}/empty.png"], "empty mask"),
        (["train", "--image", "{}/a.png", "--mask", "{}/m.png", "{}/m.png", "{}/m.png"], "3 masks"),
        (["train", "--image", "{}/a.png", "--clipseg", "{}/nowhere"], "CLIPSeg weights"),
        (["play", "--persona", "{}/none.safetensors", "--prompt", "S*"], "expected a file"),
    ],
)
def test_user_errors_end_with_their_message(tiny, photo_files, caplog, arguments, words):
    assert cli.main([a.replace("{}", str(photo_files)) for a in arguments]) == 2
    assert words in caplog.text


def test_prompt_without_placeholder(tiny, photo_files, caplog):
    train(photo_files)
    saved = str(photo_files / "out" / "persona.safetensors")
    assert cli.main(["play", "--persona", saved, "--prompt", "a man"]) == 2
    assert "exactly once" in caplog.text


def test_missing_checkpoint(caplog):
    assert cli.main(["play", "--checkpoint", "no.safetensors", "--persona", "x", "--prompt", "S*"]) == 2
    assert "no.safetensors" in caplog.text


def test_options_reach_the_request():
    given = ["--image", "a", "--steps", "7", "--tandem", "0", "--stages", "iou", "--supercategory", "cat"]
    request = cli.request_of(cli.parser("train").parse_args(given))
    assert (request.steps, request.tandem.weight, request.stages, request.supercategory) == (7, 0, "iou", "cat")
    assert request.templates == WORLD_TEMPLATES
    full = cli.request_of(cli.parser("train").parse_args([*given[:2], "--checkpoint", "x"]))
    assert (full.steps, full.batch, full.learning_rate, full.supercategory) == (1000, 2, 1e-4, "face")


def test_identity_crops_where_the_photos_face_is():
    class Embedder:
        size, margin = 8, 0.25

        def embed(self, crops):
            return torch.nn.functional.normalize(crops.mean(dim=(2, 3)), dim=1)

    picture = torch.zeros(1, 3, 32, 32)
    picture[:, 0, 8:16, 8:16] = 1
    picture[:, 1, 20:28, 20:28] = 1
    blank = Photo(torch.zeros(4, 4, 4), torch.ones(1, 4, 4))
    identify = Identifier(Embedder())
    found = [identify(picture, [replace(blank, box=box)])[0] for box in ((9, 9, 15, 15), (21, 21, 27, 27))]
    assert found[0].argmax() == 0 and found[1].argmax() == 1


# --- evaluation -----------------------------------------------------------------------------------------------------


def test_evaluation_prompts_are_held_out_and_disjoint():
    pictures = evaluation.prompt_pictures(draw_person(1, 64), 8)
    prompts = [evaluation.persona_prompt(p) for p in pictures]
    assert len(set(prompts)) == 8 and all(p.count("S*") == 1 for p in prompts)
    learnt = {t.replace("{}", "S*") for t in (*WORLD_TEMPLATES, *WORLD_TANDEM)}
    assert not learnt & set(prompts)
    assert [p.caption for p in evaluation.prompt_pictures(draw_person(2, 64), 8)] == [p.caption for p in pictures]


@pytest.fixture
def proof(tmp_path, monkeypatch):
    """The proof on a tiny host with a judge that only looks at colours."""

    class Judge:
        def embed(self, image, boxes):
            return torch.nn.functional.normalize(image.mean(dim=(1, 2)), dim=0)[None]

        def similarity(self, images, reference):
            return [float(self.embed(image, [])[0] @ reference) for image in images]

    monkeypatch.setattr(evaluation, "persona_miniature", tiny_host)
    monkeypatch.setattr(evaluation, "MiniatureDetector", lambda: None)
    monkeypatch.setattr(evaluation, "MiniatureEmbedder", lambda: None)
    monkeypatch.setattr(evaluation, "IdentityJudge", lambda *_: Judge())
    monkeypatch.setattr(evaluation, "prompt_accuracy", lambda images, asked: [0.5] * len(images))
    monkeypatch.setattr(evaluation, "detection_rate", lambda scores: 1.0)
    grid = evaluation.Grid(people=1, prompts=2, seeds=1, steps=2, warmup=2, play_steps=2)
    return evaluation.Proof(tmp_path / "proof", grid)


def test_proof_runs_every_variant_and_goes_on_where_it_stopped(proof, monkeypatch):
    report = evaluation.run(proof, ["1", "2", "curve"], [1])
    for name in evaluation.VARIANTS:
        assert f"| {name} |" in report
    assert report.count("lambda 0.") == 6 and "| timestep |" in report
    scores = json.loads((proof.folder / "vanilla_mapper" / "1.json").read_text())
    assert scores["stages"] == [0, 999] and len(scores["identity"]) == 2 and 0 < scores["share"] < 1
    monkeypatch.setattr(evaluation, "train_variant", lambda *_: pytest.fail("a finished job was run again"))
    assert evaluation.run(proof, ["1", "2", "curve"], [1]) == report


def test_folder_of_another_grid_is_refused(proof):
    with pytest.raises(SystemExit):
        evaluation.Proof(proof.folder, replace(proof.grid, steps=9))


def test_textual_inversion_learns_a_word_for_all_times(proof):
    person, _ = proof.person(1)
    from likeness.hosts.diffusers.persona import prepare_photo

    photo = prepare_photo(proof.pipeline, person.image, person.mask, 64)
    persona = evaluation.train_variant(proof.pipeline, photo, {"inversion": True}, proof.grid, 0)
    words = persona.mapper(torch.tensor([1, 500, 999])).words
    assert words.shape == (3, 1, 32) and torch.equal(words[0], words[2])
    assert not torch.equal(words[0, 0], persona.mapper.supercategory)
    assert persona.stages.at(998) == persona.stages.at(0) == "dynamic"
