"""The demo command: what it writes, whose pictures it takes, and what it says of bad input."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from lab import magicface
from likeness.core.magicface.record import Correspondence
from likeness.drawing.magicface import COLOURS, correspondence_map
from likeness.drawing.sheets import TILE

QUICK = ["--steps", "3", "--people", "1", "--pictures", "1"]
PROMPT = "a picture of a woman wearing a red shirt, portrait, on the beach"


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "me.png"
    Image.new("RGB", (150, 100), "#c08040").save(path)
    return path


def run(tmp_path: Path, *options: object) -> tuple[int, Path]:
    out = tmp_path / "out"
    return magicface.main(["demo", *QUICK, "--out", str(out), *map(str, options)]), out


def test_drawn_people_give_sheet_maps_and_table(tmp_path: Path) -> None:
    status, out = run(tmp_path)
    assert status == 0
    contact = Image.open(out / "contact_sheet.png")
    assert contact.width >= 3 * TILE and contact.height >= 2 * TILE
    maps = Image.open(out / "maps.png").convert("RGB")
    colours = {colour for _, colour in maps.getcolors(maps.width * maps.height)}
    assert COLOURS[0] in colours, "a semantic map shows its background"
    rows = [line for line in (out / "table.md").read_text("utf-8").splitlines() if line.startswith("| ")]
    assert [row.split("|")[1].strip() for row in rows[1:6]] == ["one concept"] * 2 + ["two concepts"] * 3
    assert rows[6].startswith("| small face of")
    assert (out / "diir.png").exists()
    assert json.loads((out / "settings.json").read_text("utf-8"))["steps"] == 3


def test_own_picture_with_mask(tmp_path: Path, picture: Path) -> None:
    mask = tmp_path / "mask.png"
    Image.new("L", (30, 20), 255).save(mask)
    status, out = run(tmp_path, "--image", picture, "--mask", mask, "--word", "woman", "--prompt", PROMPT)
    assert status == 0
    assert (out / "contact_sheet.png").exists() and (out / "maps.png").exists()
    assert "vanilla" in (out / "table.md").read_text("utf-8")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--image", "nowhere.png", "--word", "woman", "--prompt", PROMPT], "--image"),
        (["--image", "PICTURE", "--word", "cat", "--prompt", PROMPT], "cat"),
        (["--image", "PICTURE", "--mask", "BLACK", "--word", "woman", "--prompt", PROMPT], "empty mask"),
        (["--image", "PICTURE", "--word", "woman", "--prompt", PROMPT, "--checkpoint", "nowhere"], "--checkpoint"),
        (["--image", "PICTURE", "--word", "woman", "--prompt", PROMPT, "--checkpoint", "PICTURE"], "safetensors"),
        (["--image", "PICTURE", "--word", "woman", "--prompt", PROMPT, "--checkpoint", "UNET"], "lacks"),
    ],
)
def test_bad_input_is_named(
    tmp_path: Path, picture: Path, caplog: pytest.LogCaptureFixture, options: list[str], words: str
) -> None:
    Image.new("L", (30, 20), 0).save(tmp_path / "black.png")
    save_file({"model.diffusion_model.input_blocks.0.0.weight": torch.zeros(1)}, tmp_path / "unet.safetensors")
    files = {"PICTURE": picture, "BLACK": tmp_path / "black.png", "UNET": tmp_path / "unet.safetensors"}
    status, _ = run(tmp_path, *(files.get(option, option) for option in options))
    assert status == 2
    assert words in caplog.text


@pytest.mark.parametrize(
    "options", [["--image", "a.png"], ["--word", "man"], ["--checkpoint", "a"], ["--alpha", "2"], ["--steps", "0"]]
)
def test_options_that_do_not_go_together(options: list[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        magicface.parse(options)
    assert stop.value.code == 2


def test_own_pictures_keep_their_shape(picture: Path) -> None:
    assert magicface.read_picture(picture, 512).shape == (3, 448, 640)
    assert magicface.read_picture(picture, 128).shape == (3, 128, 128)


def test_correspondence_colours_tell_the_place() -> None:
    """Looking at the right edge is red, at the bottom green; where no reference was looked at it is black."""
    plane = torch.ones(2, 2)
    seen = Correspondence(0, (2, 2), torch.tensor([[1, 1], [1, 0]]), torch.tensor([[0.0, 1.0], [0.0, 0.0]]),
                          torch.tensor([[1.0, 0.0], [0.0, 0.0]]), plane)
    image = correspondence_map(seen, 2)
    assert image.getpixel((0, 0)) == (255, 0, 128) and image.getpixel((1, 0)) == (0, 255, 128)
    assert image.getpixel((1, 1)) == (0, 0, 0)
