"""Identity nodes: what reads faces, people from photos, people kept in files."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from comfy.clip_vision import ClipVisionModel
from comfy_api.latest import io, ui

from ..likeness.faces.interface import FaceModels
from ..likeness.formats.identity import AUTO, FORMS
from ..likeness.hosts.comfy.compat import ADVANCED, schema
from ..likeness.hosts.comfy.magicid import files
from ..likeness.hosts.comfy.magicid import identities as chains
from ..likeness.hosts.comfy.magicid.identities import Identities, LoadedWeights
from .face_nodes import FaceModelsType

CATEGORY = "Likeness/MagicID"
WeightsType = io.Custom("LIKENESS_IDENTITY_WEIGHTS")
IdentitiesType = io.Custom("LIKENESS_IDENTITIES")


class LoadIdentityWeights(io.ComfyNode):
    """Load what encodes faces."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="LikenessLoadIdentityWeights",
            display_name="Load Identity Weights",
            category=CATEGORY,
            description="Weights that turn a face into an identity: IP-Adapter FaceID (all kinds), plus-face, "
            "full-face, InstantID, or MagicID's own.",
            search_aliases=[
                "ipadapter", "faceid", "instantid", "face model loader", "identity", "MagicID", "身份模型",
                "加载模型", "人脸一致", "换脸",
            ],
            inputs=[
                io.Combo.Input(
                    "file",
                    options=files.list_weights(),
                    tooltip="A file in models/ipadapter, models/instantid or models/magicid, for your model's family.",
                ),
                FaceModelsType.Input(
                    "face_models",
                    optional=True,
                    tooltip="From Face Models. FaceID needs insightface with buffalo_l, InstantID with antelopev2. "
                    "Unconnected: the best that is installed.",
                ),
                io.ClipVision.Input(
                    "clip_vision",
                    optional=True,
                    tooltip="Needed by FaceID-Plus, PlusV2, plus-face and full-face: CLIP-ViT-H-14-laion2B-s32B-b79K.",
                ),
                io.Combo.Input(
                    "form",
                    options=[AUTO, *FORMS],
                    optional=True,
                    tooltip="auto: told by the file's content, and by its name where two forms look alike: FaceID-Plus "
                    "and PlusV2; InstantID and FaceID-portrait-unnorm.",
                    **ADVANCED,
                ),
            ],
            outputs=[
                WeightsType.Output(
                    "weights", "weights", tooltip="For MagicID Identity, with its face models."
                )
            ],
        )

    @classmethod
    def validate_inputs(cls, file: str) -> bool | str:
        """Say what to get and where to put it, where the host would only say that the list has no such file."""
        try:
            files.find(file)
        except ValueError as error:
            return str(error)
        return True

    @classmethod
    def execute(
        cls,
        file: str,
        face_models: FaceModels | None = None,
        clip_vision: ClipVisionModel | None = None,
        form: str = AUTO,
    ) -> io.NodeOutput:
        return io.NodeOutput(replace(files.load(file, form), face_models=face_models, clip_vision=clip_vision))


class MagicIdIdentity(io.ComfyNode):
    """One person from photos."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="LikenessMagicIdIdentity",
            display_name="MagicID Identity",
            category=CATEGORY,
            description="A person from one photo or several, for MagicID Apply. Chain one node for each person; their "
            "order is that of the regions.",
            search_aliases=[
                "face", "identity", "faceid", "instantid", "reference", "person", "character", "face swap",
                "人脸", "人物", "参考图", "身份", "角色一致", "换脸",
            ],
            inputs=[
                WeightsType.Input("weights", tooltip="From Load Identity Weights, one for all people of a picture."),
                io.Image.Input("image", tooltip="A photo of the person, or a batch of them. The largest face counts."),
                io.String.Input("name", default="person", tooltip="To tell people apart in messages."),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=0.0,
                    max=3.0,
                    step=0.05,
                    tooltip="Weight of this identity. FaceID: about 1, InstantID: about 0.8. 0 switches it off.",
                ),
                IdentitiesType.Input("identities", optional=True, tooltip="People before this one."),
                *_time_inputs(),
            ],
            outputs=[IdentitiesType.Output("identities_out", "identities", tooltip="The people, this one last.")],
        )

    @classmethod
    def execute(
        cls,
        weights: LoadedWeights,
        image: torch.Tensor,
        name: str,
        strength: float,
        identities: Identities | None = None,
        combine: str = chains.MEAN,
        start: float = 0.0,
        end: float = 1.0,
    ) -> io.NodeOutput:
        chain = chains.chained(weights, identities, chains.NODE)
        person, note = chains.identity_from(weights, image, name, combine)
        person = replace(person, scale=strength, start=start, end=end)
        return io.NodeOutput(chain.plus(person), ui=ui.PreviewText(note))


def _time_inputs() -> list[io.Input]:
    return [
        io.Combo.Input(
            "combine",
            options=list(chains.COMBINE),
            optional=True,
            tooltip="Several photos: their mean, or all their tokens side by side (FaceID-portrait).",
            **ADVANCED,
        ),
        io.Float.Input(
            "start", default=0.0, min=0.0, max=1.0, step=0.05, optional=True,
            tooltip="Share of the steps after which it begins to act.", **ADVANCED,
        ),
        io.Float.Input(
            "end", default=1.0, min=0.0, max=1.0, step=0.05, optional=True,
            tooltip="Share of the steps after which it is off.", **ADVANCED,
        ),
    ]  # fmt: skip


class BlendIdentities(io.ComfyNode):
    """Mix two people."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="LikenessBlendIdentities",
            display_name="Blend Identities",
            category=CATEGORY,
            description="A person between two: the last of each chain are mixed. Those before in the first chain stay.",
            search_aliases=[
                "mix faces", "morph", "merge faces", "blend faces", "face interpolation", "identity", "混合人脸",
                "融合人脸", "融脸", "身份",
            ],
            inputs=[
                IdentitiesType.Input("first", tooltip="Whose last person is mixed."),
                IdentitiesType.Input("second", tooltip="Whose last person is mixed into it."),
                io.Float.Input(
                    "share", default=0.5, min=0.0, max=1.0, step=0.05, tooltip="Of the second. 0: first, 1: second."
                ),
                io.String.Input("name", default="", tooltip="Of the mixed person. Empty: both names."),
            ],
            outputs=[IdentitiesType.Output("identities", "identities", tooltip="For MagicID Apply.")],
        )

    @classmethod
    def execute(cls, first: Identities, second: Identities, share: float, name: str) -> io.NodeOutput:
        return io.NodeOutput(chains.blend(first, second, share, name))


class SaveIdentities(io.ComfyNode):
    """Save people to a file."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="LikenessSaveIdentities",
            display_name="Save Identities",
            category=CATEGORY,
            description="Writes the people of a chain to models/identities as one safetensors file, without their "
            "photos.",
            search_aliases=[
                "store face", "save face", "faceid embeds", "character", "identity", "保存人脸", "保存角色", "身份",
            ],
            is_output_node=True,
            inputs=[
                IdentitiesType.Input("identities", tooltip="All people of the chain are saved."),
                io.String.Input("name", default="people", tooltip="File name, without ending."),
                io.Boolean.Input(
                    "overwrite", default=False, tooltip="Replace a file of that name; off: a number is added."
                ),
            ],
            outputs=[io.String.Output("path", "path", tooltip="The file that was written.")],
        )

    @classmethod
    def execute(cls, identities: Identities, name: str, overwrite: bool) -> io.NodeOutput:
        path = files.write_identities(identities, name, overwrite)
        return io.NodeOutput(str(path), ui=ui.PreviewText(f"saved as {path.name}"))


class LoadIdentities(io.ComfyNode):
    """Load people from a file."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="LikenessLoadIdentities",
            display_name="Load Identities",
            category=CATEGORY,
            description="Loads people from models/identities: no photos and no face models are needed.",
            search_aliases=[
                "stored face", "load face", "faceid embeds", "character", "identity", "加载人脸", "加载角色", "身份",
            ],
            inputs=[
                WeightsType.Input("weights", tooltip="The weights they were made with, from Load Identity Weights."),
                io.Combo.Input(
                    "file", options=files.list_identities(), tooltip="A file in the models folder 'identities'."
                ),
                IdentitiesType.Input("identities", optional=True, tooltip="People before these."),
            ],
            outputs=[IdentitiesType.Output("identities_out", "identities", tooltip="The people, these last.")],
        )

    @classmethod
    def validate_inputs(cls, file: str) -> bool | str:
        """Accept files saved since the page was loaded."""
        try:
            files.find_identities(file)
        except ValueError as error:
            return str(error)
        return True

    @classmethod
    def fingerprint_inputs(cls, file: str, **_: Any) -> float:
        """Read the file again when it was replaced."""
        return files.find_identities(file).stat().st_mtime

    @classmethod
    def execute(cls, weights: LoadedWeights, file: str, identities: Identities | None = None) -> io.NodeOutput:
        chain = chains.chained(weights, identities, "Load Identities")
        for person in files.read_identities(file, weights):
            chain = chain.plus(person)
        return io.NodeOutput(chain)


NODES = [LoadIdentityWeights, MagicIdIdentity, BlendIdentities, SaveIdentities, LoadIdentities]
