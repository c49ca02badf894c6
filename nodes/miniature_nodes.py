"""The miniature as a checkpoint: MODEL, CLIP and VAE of a world of drawn people, with nothing to download."""

from __future__ import annotations

from comfy_api.latest import io

from ..likeness.hosts.comfy.compat import schema
from ..likeness.hosts.comfy.miniature import models as miniature


class MiniatureLoader(io.ComfyNode):
    """Loads the shipped model; used where a checkpoint loader stands in a workflow."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="LikenessMiniatureLoader",
            display_name="Load Miniature",
            category="Likeness/Miniature",
            description=(
                "Loads the small model that comes with the pack: Stable Diffusion 1.5's structure, trained on drawn "
                "people. It makes small pictures in seconds on a CPU, so that every example works before any "
                "checkpoint is downloaded. Replace it by Load Checkpoint to work on your own model."
            ),
            search_aliases=["checkpoint", "load model", "demo model", "tiny sd", "加载模型", "大模型", "小模型"],
            inputs=[],
            outputs=[
                io.Model.Output(tooltip="The miniature's UNet, of SD1.5's structure. Its help names its best size."),
                io.Clip.Output(tooltip="Its text encoder. It knows the words of its world: see this node's help."),
                io.Vae.Output(tooltip="Its autoencoder, 8 pixels to a latent, as Stable Diffusion's."),
            ],
        )

    @classmethod
    def execute(cls) -> io.NodeOutput:
        return io.NodeOutput(*miniature.load())


NODES = [MiniatureLoader]
