"""MagicID nodes: people put into a picture, each in their own place."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from comfy.controlnet import ControlBase
from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io, ui

from ..likeness.core.magicid.masks import OVERLAPS
from ..likeness.hosts.comfy.compat import schema
from ..likeness.hosts.comfy.magicid import apply
from ..likeness.hosts.comfy.magicid import regions as places
from ..likeness.hosts.comfy.magicid.apply import How
from ..likeness.hosts.comfy.magicid.identities import Identities
from .face_nodes import BoundingBoxType, FacesType, PoseType
from .identity_nodes import IdentitiesType

CATEGORY = "Likeness/MagicID"
OptionsType = io.Custom("LIKENESS_MAGICID_OPTIONS")
DEFAULTS = How()


class MagicIdRegions(io.ComfyNode):
    """Say who goes where."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="LikenessMagicIdRegions",
            display_name="MagicID Regions",
            category=CATEGORY,
            description="A place for each person, from masks, boxes, a pose or the faces of a draft, with a preview of "
            "who goes where.",
            search_aliases=[
                "regional", "mask per person", "bounding box", "pose", "multiple people", "couple", "多人", "双人",
                "分区", "区域提示", "多人遮罩",
            ],
            inputs=[
                io.MultiType.Input(
                    "where",
                    [FacesType, PoseType, BoundingBoxType, io.Mask],
                    tooltip="Faces of Detect Faces on a draft, POSE_KEYPOINT, boxes, or a batch of masks. Heads count "
                    "from left to right, boxes and masks as they come.",
                ),
                io.Image.Input(
                    "image", optional=True, tooltip="The draft, for the preview. Boxes need it: it tells their size."
                ),
                IdentitiesType.Input(
                    "identities",
                    optional=True,
                    tooltip="The people, for their names; those without a place stay out of the picture.",
                ),
                io.String.Input(
                    "order",
                    default="",
                    optional=True,
                    tooltip="The people of places 1, 2, ...: '2, 1' exchanges two; 0: nobody. Empty: as they come.",
                ),
                io.Float.Input(
                    "grow",
                    default=1.0,
                    min=0.2,
                    max=4.0,
                    step=0.05,
                    optional=True,
                    tooltip="Factor on the size of heads and boxes. Hair and hats may need more than 1.",
                ),
            ],
            outputs=[
                io.Mask.Output("regions", "regions", tooltip="A mask for each person, for MagicID Apply."),
                io.Image.Output("preview", "preview", tooltip="Who goes where."),
            ],
        )

    @classmethod
    def execute(
        cls,
        where: Any,
        image: torch.Tensor | None = None,
        identities: Identities | None = None,
        order: str = "",
        grow: float = 1.0,
    ) -> io.NodeOutput:
        made = places.regions(where, image, identities, order, grow)
        return io.NodeOutput(made.masks, made.preview, ui=ui.PreviewText(made.note))


class MagicIdApply(io.ComfyNode):
    """Put people on a model, each in a place."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="LikenessMagicIdApply",
            display_name="MagicID Apply",
            category=CATEGORY,
            description="People act in the cross-attention of the model and of their ControlNet, each in their own "
            "region (MGMICA), or everywhere without regions.",
            search_aliases=[
                "ipadapter", "faceid", "instantid", "multiple people", "regional", "consistent character",
                "face swap", "identity", "MagicID", "多人", "双人", "角色一致", "人脸一致", "身份保持", "换脸",
            ],
            inputs=[*_sampler_inputs(), *_people_inputs(), *_control_inputs()],
            outputs=[
                io.Model.Output("model_out", "model", tooltip="For the sampler."),
                io.Conditioning.Output("positive_out", "positive", tooltip="For the sampler, with the ControlNet."),
                io.Conditioning.Output("negative_out", "negative", tooltip="For the sampler, with the ControlNet."),
            ],
        )

    @classmethod
    def execute(
        cls,
        model: ModelPatcher,
        positive: list,
        negative: list,
        strength: float,
        identities: Identities | None = None,
        regions: torch.Tensor | None = None,
        control_net: ControlBase | None = None,
        pose: torch.Tensor | None = None,
        options: How | None = None,
    ) -> io.NodeOutput:
        how = replace(options or DEFAULTS, strength=strength)
        done = apply.apply(model, identities, regions, how, positive, negative, control_net, pose)
        return io.NodeOutput(done.model, done.positive, done.negative)


def _sampler_inputs() -> list[io.Input]:
    """In the order of the outputs, so that a bypassed node hands each one on."""
    return [
        io.Model.Input("model", tooltip="SD1.x or SDXL, as the weights. LoRA and other patches keep working."),
        io.Conditioning.Input("positive", tooltip="The prompt. A ControlNet is put on it; else it goes on as it is."),
        io.Conditioning.Input("negative", tooltip="Likewise."),
    ]


def _people_inputs() -> list[io.Input]:
    return [
        io.Float.Input("strength", default=1.0, min=0.0, max=3.0, step=0.05, tooltip="Factor on all people. 0: none."),
        IdentitiesType.Input(
            "identities", optional=True, tooltip="From MagicID Identity. Unconnected: everything as it is."
        ),
        io.Mask.Input(
            "regions",
            optional=True,
            tooltip="From MagicID Regions, or a mask for each person as a batch, in their order; any size, stretched "
            "over the picture. Unconnected: everybody everywhere, right for one person.",
        ),
    ]


def _control_inputs() -> list[io.Input]:
    return [
        io.ControlNet.Input(
            "control_net",
            optional=True,
            tooltip="With InstantID: its ControlNet, which then reads the people instead of the text, each in their "
            "region. With other weights any ControlNet, put on as it is. MagicID's own weights bring theirs.",
        ),
        io.Image.Input(
            "pose", optional=True, tooltip="Picture for the ControlNet: Draw Landmarks, or a pose preprocessor."
        ),
        OptionsType.Input("options", optional=True, tooltip="From MagicID Options: the finer settings."),
    ]


class MagicIdOptions(io.ComfyNode):
    """What most users of MagicID Apply leave alone."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="LikenessMagicIdOptions",
            display_name="MagicID Options",
            category=CATEGORY,
            description="Finer settings for MagicID Apply. Without this node Apply works with the values it shows.",
            search_aliases=["faceid lora", "instantid strength", "overlap", "MGMICA", "多人", "区域重叠", "身份强度"],
            inputs=[*_network_options(), *_control_options()],
            outputs=[OptionsType.Output("options_out", "options", tooltip="For MagicID Apply.")],
        )

    @classmethod
    def execute(
        cls,
        overlap: str,
        lora_strength: float,
        middle_block: bool,
        control_strength: float,
        control_start: float,
        control_end: float,
    ) -> io.NodeOutput:
        span = (control_start, control_end)
        return io.NodeOutput(How(1.0, overlap, lora_strength, middle_block, control_strength, span))


def _network_options() -> list[io.Input]:
    return [
        io.Combo.Input(
            "overlap",
            options=list(OVERLAPS),
            default=DEFAULTS.overlap,
            tooltip="Where regions overlap. add: people add, as in the paper. share: together they weigh 1.",
        ),
        io.Float.Input(
            "lora_strength",
            default=DEFAULTS.lora,
            min=0.0,
            max=2.0,
            step=0.05,
            tooltip="Of the LoRA inside FaceID files (1: as made). It acts on the whole picture, also outside the "
            "regions; 0 leaves everything outside them as it is.",
        ),
        io.Boolean.Input(
            "middle_block",
            default=DEFAULTS.middle,
            tooltip="Off: the middle block stays without identities, as in packs that miss it.",
        ),
    ]


def _control_options() -> list[io.Input]:
    return [
        io.Float.Input(
            "control_strength",
            default=DEFAULTS.control,
            min=0.0,
            max=2.0,
            step=0.05,
            tooltip="How strongly the ControlNet acts. InstantID: about 0.8.",
        ),
        io.Float.Input(
            "control_start", default=0.0, min=0.0, max=1.0, step=0.05,
            tooltip="Share of the steps after which the ControlNet begins to act.",
        ),
        io.Float.Input(
            "control_end", default=1.0, min=0.0, max=1.0, step=0.05,
            tooltip="Share of the steps after which the ControlNet is off.",
        ),
    ]  # fmt: skip


NODES = [MagicIdRegions, MagicIdOptions, MagicIdApply]
