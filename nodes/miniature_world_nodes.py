"""Reference pictures from the miniature's world: a drawn person with exact masks and its caption."""

from __future__ import annotations

from comfy_api.latest import io

from ..likeness.hosts.comfy.compat import ADVANCED, schema
from ..likeness.hosts.comfy.miniature import sample as miniature_world
from ..likeness.miniature.world import spec


class MiniatureSample(io.ComfyNode):
    """Draws one person of the miniature's world."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        colours = list(spec.COLOURS)
        return schema(
            node_id="LikenessMiniatureSample",
            display_name="Miniature Sample",
            category="Likeness/Miniature",
            description=(
                "Draws a person of the miniature's world: a reference picture with exact masks and the caption that "
                "describes it, all fixed by the seeds. Use your own picture and mask with a real checkpoint."
            ),
            search_aliases=[
                "drawn person", "test image", "example picture", "sample face", "示例图", "测试图", "示例人物",
                "卡通人物",
            ],
            inputs=[
                io.Int.Input(
                    "identity", default=1, min=0, max=2**31 - 1,
                    tooltip="Who is drawn: each number is another person.",
                ),
                io.Boolean.Input(
                    "held_out", default=True,
                    tooltip="On: a person the miniature was never trained on. Off: one of those it may have seen.",
                ),
                io.Combo.Input("shot", options=list(spec.SHOTS), tooltip="How much of the person is seen."),
                io.Combo.Input("scene", options=list(spec.SCENES), tooltip="Where the person is."),
                io.Combo.Input("style", options=list(spec.STYLES), tooltip="How the picture is drawn."),
                io.Combo.Input("garment", options=list(spec.GARMENTS), tooltip="What the person wears."),
                io.Combo.Input("garment_colour", options=colours, default="blue", tooltip="Colour of the garment."),
                io.Combo.Input(
                    "accessory", options=[miniature_world.NOTHING, *spec.ACCESSORIES],
                    tooltip="What the person wears besides; its mask is the third mask output.",
                ),
                io.Combo.Input("accessory_colour", options=colours, tooltip="Colour of the accessory."),
                io.Combo.Input(
                    "expression", options=[miniature_world.NOTHING, *filter(None, spec.EXPRESSIONS)],
                    tooltip="The face's expression; none is neutral.",
                ),
                io.Int.Input(
                    "layout", default=0, min=0, max=2**31 - 1,
                    tooltip="Seed of what is not asked for: exact place, tilt of the head, details of the scene.",
                    **ADVANCED,
                ),
                io.Int.Input(
                    "size", default=256, min=64, max=1024, step=8,
                    tooltip="Side of the square picture in pixels.",
                    **ADVANCED,
                ),
            ],
            outputs=[
                io.Image.Output(id="image", display_name="image", tooltip="The picture."),
                io.Mask.Output(id="person", display_name="person", tooltip="The whole person."),
                io.Mask.Output(id="face", display_name="face", tooltip="The face with hair and ears."),
                io.Mask.Output(
                    id="accessory_mask", display_name="accessory", tooltip="The accessory; empty when there is none."
                ),
                io.String.Output(
                    id="caption", display_name="caption", tooltip="The picture in the words the miniature knows."
                ),
            ],
        )

    @classmethod
    def execute(
        cls,
        identity: int,
        held_out: bool,
        shot: str,
        scene: str,
        style: str,
        garment: str,
        garment_colour: str,
        accessory: str,
        accessory_colour: str,
        expression: str,
        layout: int = 0,
        size: int = 256,
    ) -> io.NodeOutput:
        request = miniature_world.SampleRequest(
            identity, held_out, shot, scene, style, garment, garment_colour, accessory, accessory_colour, expression,
            layout, size,
        )  # fmt: skip
        sample = miniature_world.draw(request)
        return io.NodeOutput(sample.image, sample.person, sample.face, sample.accessory, sample.caption)


NODES = [MiniatureSample]
