"""MagicID nodes: people from photos, each in their own place of the picture."""

from __future__ import annotations

from dataclasses import replace

from comfy_api.latest import io, ui

from ..likeness.core.magicid.masks import OVERLAPS
from ..likeness.formats.identity import AUTO, FORMS
from ..likeness.hosts.comfy.compat import ADVANCED, schema
from ..likeness.hosts.comfy.faces import models as face_models
from ..likeness.hosts.comfy.magicid import apply, files, identities
from ..likeness.hosts.comfy.magicid import regions as places
from ..likeness.hosts.comfy.magicid.identities import chained
from .face_nodes import BoundingBoxType, FaceModelsType, FacesType, PoseType

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
            search_aliases=["ipadapter", "faceid", "instantid", "identity", "MagicID"],
            inputs=[
                io.Combo.Input(
                    "file",
                    options=files.list_weights(),
                    tooltip="A file in models/ipadapter, models/instantid or models/magicid, for your model's family.",
                ),
                io.Combo.Input(
                    "form",
                    options=[AUTO, *FORMS],
                    tooltip="auto: told by the file's content, and by its name where two forms look alike: FaceID-Plus "
                    "and PlusV2; InstantID and FaceID-portrait-unnorm.",
                    **ADVANCED,
                ),
            ],
            outputs=[WeightsType.Output("weights", "weights", tooltip="For MagicID Identity.")],
        )

    @classmethod
    def execute(cls, file, form=AUTO) -> io.NodeOutput:
        return io.NodeOutput(files.load(file, form))


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
            search_aliases=["face", "faceid", "instantid", "reference", "person"],
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
                IdentitiesType.Input("identities", optional=True, tooltip="People before this one."),
                *_time_inputs(),
            ],
            outputs=[IdentitiesType.Output("identities_out", "identities", tooltip="The people, this one last.")],
        )

    @classmethod
    def execute(
        cls, weights, image, name, strength, face_models=None, clip_vision=None, identities=None, combine="mean",
        start=0.0, end=1.0,
    ) -> io.NodeOutput:  # fmt: skip
        return _identity(weights, image, name, face_models, clip_vision, identities, combine, strength, start, end)


def _identity(weights, image, name, models, clip_vision, before, combine, strength, start, end) -> io.NodeOutput:
    chain = identities.chained(weights, before, identities.NODE)
    models = models or face_models.load(face_models.AUTO)
    person, note = identities.identity_from(weights, image, name, models, clip_vision, combine)
    person = replace(person, scale=strength, start=start, end=end)
    return io.NodeOutput(chain.plus(person), ui=ui.PreviewText(note))


def _time_inputs() -> list[io.Input]:
    return [
        io.Combo.Input(
            "combine",
            options=list(identities.COMBINE),
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
            search_aliases=["mix faces", "morph", "identity"],
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
    def execute(cls, first, second, share, name) -> io.NodeOutput:
        return io.NodeOutput(identities.blend(first, second, share, name))


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
            search_aliases=["store face", "faceid embeds", "identity"],
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
    def execute(cls, identities, name, overwrite) -> io.NodeOutput:
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
            search_aliases=["stored face", "faceid embeds", "identity"],
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
    def validate_inputs(cls, file) -> bool | str:
        """Accept files saved since the page was loaded."""
        try:
            files.find_identities(file)
        except ValueError as error:
            return str(error)
        return True

    @classmethod
    def fingerprint_inputs(cls, file, **_) -> float:
        """Read the file again when it was replaced."""
        return files.find_identities(file).stat().st_mtime

    @classmethod
    def execute(cls, weights, file, identities=None) -> io.NodeOutput:
        chain = chained(weights, identities, "Load Identities")
        for person in files.read_identities(file, weights):
            chain = chain.plus(person)
        return io.NodeOutput(chain)


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
            search_aliases=["regional", "mask per person", "bounding box", "pose", "multiple people"],
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
    def execute(cls, where, image=None, identities=None, order="", grow=1.0) -> io.NodeOutput:
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
            search_aliases=["ipadapter", "faceid", "instantid", "multiple people", "regional", "MagicID"],
            inputs=[*_who_inputs(), *_control_inputs(), *_strength_inputs()],
            outputs=[
                io.Model.Output("model_out", "model", tooltip="For the sampler."),
                io.Conditioning.Output("positive_out", "positive", tooltip="For the sampler, with the ControlNet."),
                io.Conditioning.Output("negative_out", "negative", tooltip="For the sampler, with the ControlNet."),
            ],
        )

    @classmethod
    def execute(
        cls, model, strength, control_strength, identities=None, regions=None, positive=None, negative=None,
        control_net=None, pose=None, overlap="add", lora_strength=1.0, middle_block=True,
    ) -> io.NodeOutput:  # fmt: skip
        how = apply.How(strength, overlap, lora_strength, middle_block, control_strength)
        done = apply.apply(model, identities, regions, how, positive, negative, control_net, pose)
        return io.NodeOutput(done.model, done.positive, done.negative)


def _who_inputs() -> list[io.Input]:
    return [
        io.Model.Input("model", tooltip="SD1.x or SDXL, as the weights. LoRA and other patches keep working."),
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
        io.Conditioning.Input("positive", optional=True, tooltip="Only needed with a ControlNet, which is put on it."),
        io.Conditioning.Input("negative", optional=True, tooltip="Likewise."),
        io.ControlNet.Input(
            "control_net",
            optional=True,
            tooltip="With InstantID: its ControlNet, which then reads the people instead of the text, each in their "
            "region. With other weights any ControlNet, put on as it is. MagicID's own weights bring theirs.",
        ),
        io.Image.Input(
            "pose", optional=True, tooltip="Picture for the ControlNet: Draw Landmarks, or a pose preprocessor."
        ),
    ]


def _strength_inputs() -> list[io.Input]:
    return [
        io.Float.Input(
            "strength", default=1.0, min=0.0, max=3.0, step=0.05, tooltip="Factor on all people. 0: none."
        ),
        io.Float.Input(
            "control_strength", default=0.8, min=0.0, max=2.0, step=0.05, tooltip="How strongly the ControlNet acts."
        ),
        io.Combo.Input(
            "overlap",
            options=list(OVERLAPS),
            tooltip="Where regions overlap. add: people add, as in the paper. share: together they weigh 1.",
            **ADVANCED,
        ),
        io.Float.Input(
            "lora_strength",
            default=1.0,
            min=0.0,
            max=2.0,
            step=0.05,
            tooltip="Of the LoRA inside FaceID files (1: as made). It acts on the whole picture, also outside the "
            "regions; 0 leaves everything outside them as it is.",
            **ADVANCED,
        ),
        io.Boolean.Input(
            "middle_block",
            default=True,
            tooltip="Off: the middle block stays without identities, as in packs that miss it.",
            **ADVANCED,
        ),
    ]


NODES = [
    LoadIdentityWeights,
    MagicIdIdentity,
    BlendIdentities,
    SaveIdentities,
    LoadIdentities,
    MagicIdRegions,
    MagicIdApply,
]
