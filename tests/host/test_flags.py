"""The server started with other memory, cache and attention flags draws the same pictures."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from lab.workflows.discovery import Host
from lab.workflows.files import workflow_file
from lab.workflows.server import Server
from lab.workflows.workflow import to_api

#: Nothing is kept between nodes and prompts, models leave memory at once, and attention is another kernel's.
FLAGS = ("--cache-none", "--disable-smart-memory", "--use-quad-cross-attention", "--fast")
GRAPHS = ("Demo - MagicFace, one person", "Demo - DIIR, a small face repaired",
          "Demo - MagicID, two people")  # fmt: skip
#: Of 255 levels: another attention kernel sums in another order.
NEAR = 1.0


def pictures(server: Server) -> dict[str, np.ndarray]:
    """The demos' pictures by demo and node, drawn in few steps."""
    object_info, drawn = server.get("/object_info"), {}
    for name in GRAPHS:
        prompt = to_api(json.loads(workflow_file(name).read_text("utf-8")), object_info)
        for entry in prompt.values():
            if entry["class_type"] == "KSampler":
                entry["inputs"]["steps"] = 4
        for node, output in server.run_prompt(prompt).outputs.items():
            drawn |= {f"{name}/{node}/{i}": server.picture(e) for i, e in enumerate(output.get("images", []))}
    return drawn


def test_flags_change_no_picture(host: Host, server: Server, tmp_path: Path) -> None:
    plain = pictures(server)
    with Server(host, tmp_path, flags=FLAGS) as other:
        drawn = pictures(other)
    assert set(drawn) == set(plain)
    far = {name: np.abs(plain[name].astype(float) - drawn[name]).mean() for name in plain}
    assert all(difference < NEAR for difference in far.values()), far
