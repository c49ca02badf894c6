"""The host can be imported beside the pack, on the CPU."""

from __future__ import annotations

import comfy.model_management
import comfy_api.latest

from likeness.hosts.comfy import compat


def test_host_runs_on_cpu() -> None:
    assert comfy.model_management.get_torch_device().type == "cpu"


def test_newer_schema_arguments_do_not_stop_an_older_host() -> None:
    schema = compat.schema(node_id="LikenessTest", display_name="x", search_aliases=["y"])
    assert schema.node_id == "LikenessTest"
    widget = comfy_api.latest.io.Float.Input("w", tooltip="w", default=1.0, **compat.ADVANCED)
    assert widget.as_dict().get("advanced", False) == bool(compat.ADVANCED)
