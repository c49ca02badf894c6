"""Every shipped workflow: converts, is valid for the server, and the miniature's really run."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lab.workflows.discovery import ROOT
from lab.workflows.files import DEMOS, FILES, USERS, workflow_file
from lab.workflows.server import PromptError, Server
from lab.workflows.workflow import BYPASSED, to_api

#: where pictures and screenshots are kept for looking at; pytest's own folder when not set
PICTURES = os.environ.get("LIKENESS_PICTURES")


def load(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text("utf-8"))


def shortened(prompt: dict[str, Any]) -> dict[str, Any]:
    """The same prompt with a tenth of the training steps: here it is about running, not about likeness."""
    for entry in prompt.values():
        if entry["class_type"] == "LikenessPersonaTrainOptions":
            entry["inputs"]["steps"] = max(entry["inputs"]["steps"] // 10, 2)
    return prompt


def keep(pictures: list[np.ndarray], name: str, host: str) -> None:
    """Save the pictures where ``LIKENESS_PICTURES`` says."""
    if PICTURES:
        from PIL import Image

        Path(PICTURES).mkdir(parents=True, exist_ok=True)
        for i, picture in enumerate(pictures):
            Image.fromarray(picture).save(Path(PICTURES) / f"{name}_{host}_{i}.png")


@pytest.mark.parametrize("file", DEMOS, ids=lambda file: file.stem)
def test_miniature_workflow_runs_and_shows_pictures(server: Server, object_info: dict[str, Any], file: Path) -> None:
    prompt = shortened(to_api(load(file), object_info))
    run = server.run_prompt(prompt)
    pictures = server.pictures(run)
    keep(pictures, file.stem, server.host.name)
    assert pictures
    assert all(picture.std() > 1 for picture in pictures), "a picture of one colour"
    assert run.executed


def test_a_bypassed_apply_leaves_the_prompt_and_the_plain_model(server: Server, object_info: dict[str, Any]) -> None:
    """Bypassed in the front end, MagicFace Apply hands on its model and its positive: both samplers draw the same."""
    graph = load(workflow_file("Demo - MagicFace, one person"))
    bypassed = next(node for node in graph["nodes"] if node["type"] == "LikenessMagicFaceApply")
    bypassed["mode"] = BYPASSED
    prompt = to_api(graph, object_info)
    assert str(bypassed["id"]) not in prompt
    samplers = [entry for entry in prompt.values() if entry["class_type"] == "KSampler"]
    for entry in samplers:
        entry["inputs"] |= {"steps": 1}
    first, second = ({k: entry["inputs"][k] for k in ("model", "positive")} for entry in samplers)
    assert first == second
    assert server.pictures(server.run_prompt(prompt))


def test_a_bypassed_persona_apply_leaves_the_prompt_and_the_plain_model(object_info: dict[str, Any]) -> None:
    graph = load(workflow_file("Demo - PersonaMagic, learn a person"))
    applied = [node for node in graph["nodes"] if node["type"] == "LikenessPersonaApply"]
    bypassed = next(node for node in applied if any(i["name"] == "positive" and i["link"] for i in node["inputs"]))
    (sampler,) = (link[3] for link in graph["links"] if link[1] == bypassed["id"] and link[2] == 1)
    bypassed["mode"] = BYPASSED
    prompt = to_api(graph, object_info)
    given = prompt[str(sampler)]["inputs"]
    sources = {name: prompt[given[name][0]]["class_type"] for name in ("model", "positive")}
    assert sources == {"model": "LikenessMiniatureLoader", "positive": "CLIPTextEncode"}


def test_a_bypassed_magicid_hands_on_each_of_its_three(object_info: dict[str, Any]) -> None:
    graph = load(workflow_file("MagicID - InstantID, SDXL"))
    next(node for node in graph["nodes"] if node["type"] == "LikenessMagicIdApply")["mode"] = BYPASSED
    prompt = to_api(graph, object_info)
    (sampler,) = (entry["inputs"] for entry in prompt.values() if entry["class_type"] == "KSampler")
    texts = [prompt[sampler[name][0]]["inputs"]["text"] for name in ("positive", "negative")]
    assert "blue suit" in texts[0] and "low quality" in texts[1]
    assert prompt[sampler["model"][0]]["class_type"] == "CheckpointLoaderSimple"


@pytest.mark.parametrize("file", USERS, ids=lambda file: file.stem)
def test_workflow_lacks_nothing_but_the_users_models(server: Server, object_info: dict[str, Any], file: Path) -> None:
    """The server misses only models that the user is to bring: the pictures to load are samples of the pack."""
    prompt = to_api(load(file), object_info)
    # the server draws what it can: of a graph that lacks a model the pictures that are only looked at
    prompt = {key: entry for key, entry in prompt.items() if entry["class_type"] != "PreviewImage"}
    with pytest.raises(PromptError) as refused:
        server.run_prompt(prompt)
    faulty = json.loads(str(refused.value))["node_errors"].values()
    assert faulty
    assert "LoadImage" not in {node["class_type"] for node in faulty}
    kinds = {fault["type"] for node in faulty for fault in node["errors"]}
    assert kinds <= {"value_not_in_list", "custom_validation_failed"}


def test_every_template_has_its_picture() -> None:
    assert [file.name for file in FILES if not file.with_suffix(".jpg").is_file()] == []


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_workflows_name_no_path_of_this_machine(file: Path) -> None:
    text = file.read_text("utf-8")
    assert "/root" not in text
    assert str(ROOT) not in text
