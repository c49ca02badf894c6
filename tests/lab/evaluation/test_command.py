"""The evaluation command over folders of drawn pictures, with the miniature's referees in every place."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from lab.evaluation import command, judge
from lab.evaluation.cache import Cache
from lab.evaluation.face_sim import MINIATURE, FaceFinder, face_models
from lab.evaluation.judge import Referees, evaluate, picture_values
from lab.evaluation.metrics import NO_FACE
from lab.evaluation.protocol import METRICS, SHIPPED, load_protocol, parse_protocol, people_of, shots_of
from lab.evaluation.scores import FaceRule
from lab.evaluation.tables import draw_bars, markdown
from lab.people import portrait
from likeness.core.errors import LikenessError
from likeness.miniature.world import sample_identity
from likeness.miniature.world.render import render

PEOPLE = ("anna", "ben", "cleo")
SCENES = ("snow", "beach")


def drawn(name: str, scene: str, seed: int) -> tuple[Image.Image, str]:
    """Person ``name`` in a scene, and the caption."""
    identity = sample_identity(random.Random(name), held_out=True)
    picture = replace(portrait(identity, random.Random(seed), word="person"), scene=scene)
    return Image.fromarray(render(picture, 128)), picture.caption


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """References; ``right``: the people in their prompts; ``wrong``: each with another's face in another scene."""
    root = tmp_path_factory.mktemp("folders")
    for name in PEOPLE:
        save(drawn(name, "studio", 1)[0], root / "people" / name / "a.png")
        for line, scene in enumerate(SCENES, 1):
            picture, caption = drawn(name, scene, line)
            save(picture, root / "right" / name / f"{line}_1.png")
            (root / "right" / name / f"{line}_1.txt").write_text(caption)
            save(drawn(f"not {name}", "night", line)[0], root / "wrong" / name / f"{line}_1.png")
            (root / "wrong" / name / f"{line}_1.txt").write_text(caption)
    return root


def save(picture: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path)


def arguments(root: Path, out: Path, *more: str) -> list[str]:
    given = ["--references", f"{root}/people", "--pictures", f"wrong={root}/wrong", f"right={root}/right"]
    return [*given, "--faces", MINIATURE, "--cache", f"{out}/cache", "--out", f"{out}/out", "--no-bars", *more]


def test_the_right_pictures_are_preferred(folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert command.main(arguments(folders, tmp_path, "--metrics", *METRICS)) == 0
    data = json.loads((tmp_path / "out" / "table.json").read_text())
    right, wrong = data["table"]["right"], data["table"]["wrong"]
    assert set(right) == set(METRICS) and not data["absent"]
    for metric in ("clip_t", "t_sim", "clip_i", "face_sim", "i_pre"):
        assert right[metric]["mean"] > wrong[metric]["mean"], metric
    assert right["face_sim"]["mean"] > 0.6 > 0.3 > wrong["face_sim"]["mean"]
    assert right["face_sim"]["count"] == 3 and data["pictures"] == {"wrong": 6, "right": 6}
    assert "| right |" in (text := capsys.readouterr().out) and "fewer than 5 people" in text


def test_a_second_run_looks_at_nothing(folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command.main(arguments(folders, tmp_path))
    first = (tmp_path / "out" / "table.json").read_text()

    def never(*args: object) -> None:
        raise AssertionError("looked at a picture again")

    monkeypatch.setattr(FaceFinder, "_look", never)
    monkeypatch.setattr("lab.evaluation.miniature_networks.MiniatureNetwork.features", never)
    command.main(arguments(folders, tmp_path))
    assert (tmp_path / "out" / "table.json").read_text() == first


def test_what_lacks_weights_is_named_and_the_rest_is_done(folders: Path, tmp_path: Path) -> None:
    protocol = parse_protocol(
        {"references": "people", "methods": {"right": "right"}, "provider": MINIATURE,
         "metrics": ["clip_t", "dino", "face_sim"]}, folders)  # fmt: skip
    referees = Referees(tmp_path / "weights", MINIATURE, Cache(tmp_path / "cache"))
    referees.__dict__["drawn"] = False  # the faces are drawn, the other networks the user's own
    result = evaluate(protocol, referees)
    assert set(result.table["right"]) == {"face_sim"}
    assert "weights/clip/" in result.absent["clip_t"] and "weights/dino/" in result.absent["dino"]
    assert "Not measured: DINO" in markdown(result)


def test_groups_and_designated_boxes(tmp_path: Path) -> None:
    for name in PEOPLE[:2]:
        save(drawn(name, "studio", 1)[0], tmp_path / "people" / name / "a.png")
    wide = Image.new("RGB", (256, 128))
    for i, name in enumerate(PEOPLE[:2]):
        wide.paste(drawn(name, "snow", 2)[0], (128 * i, 0))
    save(wide, tmp_path / "made" / "anna+ben" / "1.png")
    save(wide, tmp_path / "made" / "ben+anna" / "1.png")
    finder = FaceFinder(face_models(MINIATURE, tmp_path), Cache(tmp_path / "look"))
    found = finder(tmp_path / "made" / "anna+ben" / "1.png")
    assert found.size == (256, 128) and len(found.boxes) == 2
    left, right = sorted([x / s for x, s in zip(box, (256, 128) * 2, strict=True)] for box in found.boxes.tolist())
    (tmp_path / "regions.yaml").write_text(f"anna+ben: {[left, right]}\nben+anna/1.png: {[left, right]}\n")
    (tmp_path / "prompts.txt").write_text("two people\n")
    plain = {"references": "people", "methods": {"made": "made"}, "provider": MINIATURE, "prompts": "prompts.txt"}
    protocol = parse_protocol({**plain, "regions": "regions.yaml", "rule": {"overlap": 0.5}}, tmp_path)
    shots, people = shots_of(protocol, "made"), people_of(protocol)
    assert [s.prompt for s in shots] == ["two people"] * 2 and shots[0].people == ("anna", "ben")
    values = picture_values("face_sim", shots, people, protocol, Referees(tmp_path, MINIATURE, finder.cache))
    assert values["anna+ben"][0] > 0.6 and values["ben+anna"][0] < 0.3, "each in the other's place"
    free = replace(protocol, rule=FaceRule())
    values = picture_values("face_sim", shots, people, free, Referees(tmp_path, MINIATURE, finder.cache))
    assert values["ben+anna"][0] == pytest.approx(values["anna+ben"][0]), "without regions the best match counts"
    with pytest.raises(LikenessError, match="designated box"):
        judge.picture_values("face_sim", [replace(s, regions=None) for s in shots], people, protocol,
                             Referees(tmp_path, MINIATURE, finder.cache))


def test_a_picture_without_a_face_scores_as_the_paper_says(tmp_path: Path) -> None:
    save(drawn("anna", "studio", 1)[0], tmp_path / "people" / "anna" / "a.png")
    save(Image.new("RGB", (128, 128), "green"), tmp_path / "made" / "anna" / "1.png")
    protocol = parse_protocol({"references": "people", "methods": {"made": "made"}, "provider": MINIATURE}, tmp_path)
    referees = Referees(tmp_path, MINIATURE, Cache(tmp_path / "cache"))
    shots, people = shots_of(protocol, "made"), people_of(protocol)
    assert picture_values("i_pre", shots, people, protocol, referees) == {"anna": [NO_FACE]}
    assert picture_values("face_sim", shots, people, protocol, referees) == {"anna": [0.0]}
    left_out = replace(protocol, rule=FaceRule(no_face=None))
    assert picture_values("face_sim", shots, people, left_out, referees) == {"anna": []}


def test_the_placeholder_is_read_as_the_supercategory(tmp_path: Path) -> None:
    save(Image.new("RGB", (8, 8)), tmp_path / "people" / "anna" / "a.png")
    save(Image.new("RGB", (8, 8)), tmp_path / "made" / "anna" / "2_7.png")
    (tmp_path / "p.txt").write_text("a photo of S*\n\nS* in the snow\n")
    protocol = parse_protocol({"references": "people", "methods": {"made": "made"}, "prompts": "p.txt",
                               "placeholder": "S*"}, tmp_path)
    assert shots_of(protocol, "made")[0].prompt == "face in the snow"


BAD = {
    "unknown key": ({"metricks": []}, "unknown keys"),
    "unknown metric": ({"metrics": ["psnr"]}, "evaluation: metrics"),
    "wrong rule": ({"rule": {"iou": 0.5}}, "no_face, overlap, misplaced"),
}


@pytest.mark.parametrize(("data", "message"), BAD.values(), ids=BAD.keys())
def test_a_protocol_with_a_mistake_says_which(data: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises(LikenessError, match=message):
        parse_protocol(data, tmp_path)


def test_wrong_folders_end_with_a_message(folders: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for changed, message in (
        (("--references", f"{folders}/nothing"), "one folder a person"),
        (("--pictures", f"x={folders}/nothing"), "no subfolder holds a picture"),
        (("--pictures", f"=x{folders}"), "NAME=FOLDER"),
        (("--baseline", "nobody"), "Name one of the methods"),
    ):
        caplog.clear()
        assert command.main([*arguments(folders, tmp_path), *changed]) == 2
        assert message in caplog.text
    (tmp_path / "made").mkdir()
    save(Image.new("RGB", (8, 8)), tmp_path / "made" / "zoe" / "1.png")
    assert command.main([*arguments(folders, tmp_path), "--pictures", f"x={tmp_path}/made"]) == 2
    assert "unknown ['zoe']" in caplog.text


def test_the_papers_protocols_load_and_carry_their_numbers() -> None:
    names = {file.stem for file in SHIPPED.glob("*.yaml")}
    assert names == {"magicface_1", "magicface_1_multi", "personamagic_1", "personamagic_2", "personamagic_3",
                     "personamagic_6", "magicid_1", "magicid_2", "magicid_3", "magicid_4"}
    for name in names:
        protocol = load_protocol(Path(name))
        assert protocol.published and all(set(row) <= set(protocol.metrics) for row in protocol.published.values())
    assert load_protocol(Path("magicid_3")).rule == FaceRule(0.0, 0.5, 0.0)


def test_bars_are_drawn(folders: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="the extra 'evaluation' is not installed")
    protocol = parse_protocol({"references": "people", "methods": {"right": "right", "wrong": "wrong"},
                               "provider": MINIATURE, "metrics": ["face_sim", "fid"]}, folders)
    draw_bars(evaluate(protocol, Referees(tmp_path, MINIATURE, Cache(tmp_path / "cache"))), tmp_path / "bars.png")
    with Image.open(tmp_path / "bars.png") as picture:
        pixels = torch.tensor(list(picture.convert("L").tobytes())).float()
    assert pixels.std() > 10
