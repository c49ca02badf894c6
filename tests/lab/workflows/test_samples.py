"""The pictures that the templates load: as they are drawn, and put where ComfyUI looks for them."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lab.workflows.files import FILES
from lab.workflows.samples import SAMPLES
from likeness.hosts.comfy.samples import FOLDER, put_samples


@pytest.mark.parametrize("name", SAMPLES)
def test_a_sample_is_as_it_is_drawn(name: str) -> None:
    kept, drawn = (np.asarray(image, np.int16) for image in (Image.open(FOLDER / name), SAMPLES[name]()))
    assert kept.shape == drawn.shape
    assert np.abs(kept - drawn).mean() < 1  # of 255: edges are smoothed differently from machine to machine


def test_every_sample_is_loaded_by_a_template_and_nothing_else_is() -> None:
    nodes = [node for file in FILES for node in json.loads(file.read_text("utf-8"))["nodes"]]
    loaded = {node["widgets_values"][0] for node in nodes if node["type"] == "LoadImage"}
    assert loaded == set(SAMPLES) == {file.name for file in FOLDER.iterdir()}


def test_samples_are_put_where_there_are_none(tmp_path: Path) -> None:
    (tmp_path / "likeness_man.png").write_bytes(b"the user's own")
    put_samples(tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == set(SAMPLES)
    assert (tmp_path / "likeness_man.png").read_bytes() == b"the user's own"


def test_a_folder_that_cannot_be_written_is_told_and_costs_nothing_else(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "input"
    folder.write_bytes(b"a file where the folder should be")
    with caplog.at_level(logging.WARNING, "likeness"):
        put_samples(folder)
    assert len(caplog.records) == 1 and "input" in caplog.text
