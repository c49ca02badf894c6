"""The miniature on a running server: as a checkpoint, twice in a row, after an interrupt, without a leak."""

from __future__ import annotations

import copy
import re
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lab.workflows.layout import node
from lab.workflows.make import text_to_image
from lab.workflows.server import PromptError, Run, Server


def prompt(steps: int = 4, **sampler: Any) -> dict[str, Any]:
    graph = copy.deepcopy(text_to_image())
    graph["latent"]["inputs"].update(width=256, height=256, batch_size=1)
    graph["sampler"]["inputs"].update(steps=steps, **sampler)
    return graph


def fresh(server: Server, graph: dict[str, Any]) -> Run:
    """Run with the server's models unloaded and its cache dropped, so that every node executes."""
    for _attempt in range(5):
        server.post("/free", {"unload_models": True, "free_memory": True})
        time.sleep(1.0)  # the server says nothing when it has done so
        run = server.run_prompt(graph)
        if set(run.executed) == set(graph):
            return run
    raise AssertionError(f"of {sorted(graph)} only {run.executed} were executed: the cache was not dropped")


def picture(server: Server, graph: dict[str, Any]) -> np.ndarray:
    return server.pictures(fresh(server, graph))[0]


def test_picture_comes_back(server: Server) -> None:
    got = picture(server, prompt())
    assert got.shape == (256, 256, 3)
    assert got.std() > 1


def test_two_runs_are_identical(server: Server) -> None:
    first = picture(server, prompt())
    assert np.array_equal(picture(server, prompt()), first)
    assert not np.array_equal(picture(server, prompt(seed=2)), first)


SAMPLERS = [("euler_ancestral", "normal"), ("heun", "simple"), ("ddim", "ddim_uniform")]


@pytest.mark.parametrize(("sampler", "scheduler"), SAMPLERS)
def test_samplers_and_odd_sizes(server: Server, sampler: str, scheduler: str) -> None:
    graph = prompt(steps=2, sampler_name=sampler, scheduler=scheduler)
    graph["latent"]["inputs"].update(width=200, height=136)
    assert picture(server, graph).shape == (136, 200, 3)


def test_image_to_image_and_tiles(server: Server) -> None:
    graph = prompt(steps=4, denoise=0.5, latent_image=["encode", 0])
    graph["drawn"] = node("LikenessMiniatureSample", **drawn())
    graph["encode"] = node("VAEEncodeTiled", pixels=["drawn", 0], vae=["checkpoint", 2], tile_size=128, overlap=32,
                           temporal_size=64, temporal_overlap=8)
    graph["decode"] = node("VAEDecodeTiled", samples=["sampler", 0], vae=["checkpoint", 2], tile_size=128, overlap=32,
                           temporal_size=64, temporal_overlap=8)
    assert picture(server, graph).shape == (256, 256, 3)


def drawn(**changes: Any) -> dict[str, Any]:
    return {
        "identity": 3, "held_out": True, "shot": "portrait", "scene": "snow", "style": "flat", "garment": "suit",
        "garment_colour": "blue", "accessory": "hat", "accessory_colour": "red", "expression": "smiling", "layout": 5,
        "size": 256, **changes,
    }


def test_drawn_sample_has_picture_and_masks(server: Server) -> None:
    graph = {"drawn": node("LikenessMiniatureSample", **drawn())}
    graph["picture"] = node("SaveImage", images=["drawn", 0], filename_prefix="drawn")
    for i, name in enumerate(("person", "face", "accessory"), start=1):
        graph[name] = node("MaskToImage", mask=["drawn", i])
        graph[f"save_{name}"] = node("SaveImage", images=[name, 0], filename_prefix=name)
    run = server.run_prompt(graph)
    saved = ("picture", "save_person", "save_face", "save_accessory")
    image, person, face, hat = (server.picture(run.outputs[key]["images"][0]) for key in saved)
    assert image.std() > 10
    areas = [mask[..., 0].mean() / 255 for mask in (person, face, hat)]
    assert areas[0] > areas[1] > 0.05
    assert areas[2] > 0.005


def test_interrupted_run_leaves_the_model_as_it_was(server: Server) -> None:
    before = picture(server, prompt())
    long = server.queue(prompt(steps=400))
    while not server.get("/queue")["queue_running"]:
        time.sleep(0.1)
    time.sleep(3)
    server.post("/interrupt", {})
    assert server.wait(long)["status"]["status_str"] == "error"
    assert np.array_equal(picture(server, prompt()), before)


def test_invalid_input_is_refused_and_the_queue_goes_on(server: Server) -> None:
    with pytest.raises(PromptError, match="value_not_in_list"):
        server.run_prompt({
            "drawn": node("LikenessMiniatureSample", **drawn(scene="moon")),
            "save": node("SaveImage", images=["drawn", 0], filename_prefix="x"),
        })
    assert server.run_prompt(prompt(steps=1, seed=99)).outputs


def test_memory_does_not_grow(server: Server) -> None:
    """Resident memory after ten runs is that after two, within 60 MB."""

    def resident() -> float:
        status = Path(f"/proc/{server.pid}/status").read_text("utf-8")
        return int(re.search(r"VmRSS:\s+(\d+)", status).group(1)) / 1024

    for seed in range(2):
        fresh(server, prompt(steps=1, seed=seed))
    start = resident()
    for seed in range(2, 10):
        fresh(server, prompt(steps=1, seed=seed))
    assert resident() - start < 60
