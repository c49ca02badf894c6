"""Entry point that ComfyUI loads: the node list and the folder of front-end files."""

from __future__ import annotations

from pathlib import Path

from comfy_api.latest import ComfyExtension, io

WEB_DIRECTORY = "./js"


class LikenessExtension(ComfyExtension):
    """The pack as ComfyUI sees it."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        """Every node of the pack whose dependencies are installed."""
        from .nodes import collect

        return collect()


async def comfy_entrypoint() -> ComfyExtension:
    """Called once by ComfyUI at start-up; puts the pictures that the templates load into its input folder."""
    import folder_paths

    from .likeness.hosts.comfy.samples import put_samples

    put_samples(Path(folder_paths.get_input_directory()))  # not in on_load, which ComfyUI 0.8 never calls
    return LikenessExtension()
