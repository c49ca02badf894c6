"""Entry point that ComfyUI loads: the node list and the folder of front-end files."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io

WEB_DIRECTORY = "./js"


class LikenessExtension(ComfyExtension):
    """The pack as ComfyUI sees it."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        """Every node of the pack whose dependencies are installed."""
        from .nodes import collect

        return collect()


async def comfy_entrypoint() -> ComfyExtension:
    """Called once by ComfyUI at start-up."""
    return LikenessExtension()
