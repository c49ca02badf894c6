"""MagicFace nodes: reference concepts, their application to a model, and previews of what the model looked at."""

from __future__ import annotations

import torch
from comfy.model_patcher import ModelPatcher
from comfy.sd import CLIP, VAE
from comfy_api.latest import io, ui

from ..likeness.core.blocks import DEFAULT_LAYERS
from ..likeness.core.magicface.request import COMPLETIONS, WEIGHTINGS
from ..likeness.hosts.comfy.compat import ADVANCED, schema
from ..likeness.hosts.comfy.magicface import apply as magicface_apply
from ..likeness.hosts.comfy.magicface import previews
from ..likeness.hosts.comfy.magicface.apply import NATIVE_SIZE, REFERENCE_SIZES, ApplyOptions
from ..likeness.hosts.comfy.magicface.previews import MagicFaceRecord
from ..likeness.hosts.comfy.magicface.references import References, given_concept

CATEGORY = "Likeness/MagicFace"
ReferencesType = io.Custom("LIKENESS_MAGICFACE_REFERENCES")
OptionsType = io.Custom("LIKENESS_MAGICFACE_OPTIONS")
RecordType = io.Custom("LIKENESS_MAGICFACE_RECORD")


class MagicFaceReference(io.ComfyNode):
    """One concept: a picture, where it is in the picture, and the word that stands for it."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="LikenessMagicFaceReference",
            display_name="MagicFace Reference",
            category=CATEGORY,
            description="A person, garment, accessory or texture to take over into the picture; chain one node each.",
            search_aliases=[
                "reference image", "identity", "subject", "concept", "face", "consistent character", "outfit",
                "clothes", "参考图", "人脸参考", "角色参考", "角色一致", "服装", "换装",
            ],
            inputs=[
                io.Image.Input(
                    "image", tooltip="A picture of the concept, of any size and shape; a batch is several views of it."
                ),
                io.String.Input(
                    "concept",
                    default="man",
                    tooltip="The word or phrase for it, exactly as it stands in the prompt of MagicFace Apply: 'man', "
                    "'red tie'.",
                ),
                io.Float.Input(
                    "weight",
                    default=3.0,
                    min=0.0,
                    max=20.0,
                    step=0.1,
                    tooltip="How strongly the model is drawn to the concept's pixels. The paper uses 3; lower it when "
                    "the picture falls apart, 0 switches the reference off.",
                ),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="Where the concept is in its picture; any size. Without a mask the whole picture counts, "
                    "background included.",
                ),
                ReferencesType.Input(
                    "references", optional=True, tooltip="Further references, from another MagicFace Reference node."
                ),
                io.String.Input(
                    "prompt",
                    default="",
                    optional=True,
                    multiline=True,
                    tooltip="What the reference picture shows, for its own pass through the model. Empty: the concept.",
                    **ADVANCED,
                ),
                io.Mask.Input(
                    "region",
                    optional=True,
                    tooltip="Where the concept belongs in the new picture; any size, stretched over it. Without one "
                    "the concept is found by its word. Use it when several people get mixed up.",
                ),
            ],
            outputs=[ReferencesType.Output("references_out", "references", tooltip="The chain with this one added.")],
        )

    @classmethod
    def execute(
        cls,
        image: torch.Tensor,
        concept: str,
        weight: float,
        mask: torch.Tensor | None = None,
        references: References | None = None,
        prompt: str = "",
        region: torch.Tensor | None = None,
    ) -> io.NodeOutput:
        item = given_concept(image, mask, concept, prompt, weight, region)
        chain = References((*(references.concepts if references else ()), item))
        note = "" if item.masks is not None else f"No mask: the whole picture stands for '{item.name}'."
        return io.NodeOutput(chain, ui=ui.PreviewText(note) if note else None)


class MagicFaceOptions(io.ComfyNode):
    """What most users of MagicFace Apply leave alone."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="LikenessMagicFaceOptions",
            display_name="MagicFace Options",
            category=CATEGORY,
            description="Finer settings for MagicFace Apply. Without this node Apply works with the values it shows.",
            search_aliases=["reference attention", "semantic map", "S-CFG", "参考注意力", "语义图", "参考设置"],
            inputs=[
                io.Combo.Input(
                    "weighting",
                    options=list(WEIGHTINGS),
                    default="additive",
                    tooltip="How mask and weight act. additive: as the published pictures were made. multiplicative: "
                    "the paper's Eq. 2 and 6 to the letter. none: mask without weight.",
                ),
                io.String.Input(
                    "layers",
                    default=DEFAULT_LAYERS,
                    tooltip="Where references are looked at: 'finest decoder levels' (the paper's choice), 'decoder', "
                    "'all', level names such as 'up2, mid', or layer numbers such as '10-15'.",
                ),
                io.Boolean.Input(
                    "s_cfg",
                    default=False,
                    tooltip="Guidance of its own strength per region, so that no concept is over- or underdriven. Off: "
                    "the sampler's plain guidance, as in the paper.",
                ),
                io.Combo.Input(
                    "map_completion",
                    options=list(COMPLETIONS),
                    default="paper",
                    tooltip="How self-attention fills the gaps of the semantic map. paper: S C. code: (S + 3 S^2)/4 C, "
                    "as released. none: cross-attention alone.",
                ),
                io.Boolean.Input(
                    "map_full_resolution",
                    default=False,
                    tooltip="Make the semantic map from the finest layers too: sharper edges, slower steps.",
                ),
                io.Float.Input(
                    "ca_scale",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    tooltip="Factor on all other words when concepts claim their regions; lower gives concepts more "
                    "room. 0: automatic, 0.9 for one concept and 0.6 for several.",
                ),
                io.Combo.Input(
                    "reference_size",
                    options=list(REFERENCE_SIZES),
                    default=NATIVE_SIZE,
                    tooltip="Size at which reference pictures are read. model native: about 512 x 512 pixels (SDXL: "
                    "1024 x 1024) in their own shape. own: as they come.",
                ),
                io.Boolean.Input(
                    "reference_null_prompt",
                    default=False,
                    tooltip="Read the references with an empty prompt instead of their own.",
                ),
                io.Int.Input(
                    "reference_seed",
                    default=0,
                    min=0,
                    max=2**31 - 1,
                    step=1,
                    tooltip="Seed of the noise put on the references; independent of the picture's seed.",
                ),
                io.Int.Input(
                    "cache_device_mb",
                    default=1024,
                    min=0,
                    max=65536,
                    step=64,
                    tooltip="Graphics memory, in MiB, that a run may fill with what is read from the references; what "
                    "the model itself needs stays free.",
                ),
                io.Int.Input(
                    "cache_host_mb",
                    default=4096,
                    min=0,
                    max=262144,
                    step=256,
                    tooltip="Main memory, in MiB, for what was read from the references, so that the next seed or "
                    "prompt pays nothing for them.",
                ),
                io.Boolean.Input(
                    "record",
                    default=True,
                    tooltip="Keep maps and correspondences of the last runs for MagicFace Preview. They are taken at "
                    "a few steps of a run, and cost little.",
                ),
                io.String.Input(
                    "record_points",
                    default="0.5, 0.35",
                    tooltip="Points of the new picture whose attention is recorded: x, y in 0..1, several separated by "
                    "semicolons: '0.5, 0.35; 0.3, 0.8'.",
                ),
            ],
            outputs=[OptionsType.Output("options_out", "options", tooltip="For MagicFace Apply.")],
        )

    @classmethod
    def execute(
        cls,
        weighting: str,
        layers: str,
        s_cfg: bool,
        map_completion: str,
        map_full_resolution: bool,
        ca_scale: float,
        reference_size: str,
        reference_null_prompt: bool,
        reference_seed: int,
        cache_device_mb: int,
        cache_host_mb: int,
        record: bool,
        record_points: str,
    ) -> io.NodeOutput:
        return io.NodeOutput(
            ApplyOptions(
                weighting=weighting,
                layers=layers,
                s_cfg=s_cfg,
                map_completion=map_completion,
                map_full_resolution=map_full_resolution,
                ca_scale=ca_scale,
                reference_size=reference_size,
                reference_null_prompt=reference_null_prompt,
                reference_seed=reference_seed,
                cache_device_mb=cache_device_mb,
                cache_host_mb=cache_host_mb,
                record=record,
                record_points=record_points,
            )
        )


class MagicFaceApply(io.ComfyNode):
    """Put the references on a model: coarse-to-fine reference attention while it samples."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="LikenessMagicFaceApply",
            display_name="MagicFace Apply",
            category=CATEGORY,
            description="Training-free personalisation: while sampling, the picture looks up its concepts in the "
            "references. Use both outputs: the prompt is what the concepts' places are found by.",
            search_aliases=[
                "personalization", "identity", "reference attention", "reference only", "consistent character",
                "same face", "face", "face swap", "RSA", "RBA", "角色一致", "人脸一致", "人物一致", "身份保持",
                "个性化", "参考图", "换脸",
            ],
            inputs=[
                io.Model.Input(
                    "model", tooltip="SD1.x, SD2.x or SDXL. LoRAs, ControlNet and other patches keep working."
                ),
                io.Clip.Input("clip", tooltip="The model's text encoder; encodes this prompt and the references'."),
                io.Vae.Input("vae", tooltip="The model's VAE; encodes the reference pictures."),
                io.String.Input(
                    "prompt",
                    default="a man in the snow",
                    multiline=True,
                    dynamic_prompts=True,
                    tooltip="What to draw. It must name every reference's concept in the same words.",
                ),
                io.Float.Input(
                    "alpha",
                    default=0.4,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    tooltip="Share of the steps in which all of the picture looks at all references (RSA), before each "
                    "concept's region looks at its own reference only (RBA). 0: RBA only, 1: RSA only.",
                ),
                ReferencesType.Input(
                    "references",
                    optional=True,
                    tooltip="From MagicFace Reference. Unconnected, the model samples as if this node were not there.",
                ),
                io.Conditioning.Input(
                    "positive",
                    optional=True,
                    tooltip="The same prompt already encoded, perhaps with areas, ControlNet or a persona in it: it is "
                    "passed on instead of encoding the prompt here, also when this node is bypassed.",
                ),
                OptionsType.Input("options", optional=True, tooltip="From MagicFace Options: the finer settings."),
            ],
            outputs=[
                io.Model.Output("model_out", "model", tooltip="The model with the references; for the sampler."),
                io.Conditioning.Output(
                    "positive_out", "positive", tooltip="The encoded prompt; the sampler's positive."
                ),
                RecordType.Output("record_out", "record", tooltip="For MagicFace Preview; filled while sampling."),
            ],
        )

    @classmethod
    def execute(
        cls,
        model: ModelPatcher,
        clip: CLIP,
        vae: VAE,
        prompt: str,
        alpha: float,
        references: References | None = None,
        positive: list | None = None,
        options: ApplyOptions | None = None,
    ) -> io.NodeOutput:
        applied = magicface_apply.apply(model, clip, vae, prompt, alpha, references, positive, options)
        return io.NodeOutput(applied.model, applied.positive, applied.record)


class MagicFacePreview(io.ComfyNode):
    """Draw what a run recorded."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="LikenessMagicFacePreview",
            display_name="MagicFace Preview",
            category=CATEGORY,
            description="Shows where the model saw each concept, and where in the references it looked.",
            search_aliases=[
                "semantic map", "attention map", "correspondence", "debug", "注意力图", "语义图", "对应关系", "调试",
            ],
            is_output_node=True,
            inputs=[
                io.Latent.Input("samples", tooltip="The sampler's output; tells which run to show, and waits for it."),
                RecordType.Input(
                    "record", optional=True, tooltip="From MagicFace Apply; nothing comes when that is bypassed."
                ),
                io.Image.Input("image", optional=True, tooltip="The decoded picture, to draw the maps over."),
                io.Int.Input(
                    "columns",
                    default=5,
                    min=1,
                    max=20,
                    step=1,
                    optional=True,
                    tooltip="Maps per row of the sheet.",
                    **ADVANCED,
                ),
            ],
            outputs=[
                io.Image.Output("maps", "maps", tooltip="Semantic maps over the steps, on one sheet."),
                io.Image.Output("correspondence", "correspondence", tooltip="Same colour: looked up there (Fig. 5a)."),
                io.Image.Output("patches", "patches", tooltip="Where the recorded points looked (Fig. 5b)."),
            ],
        )

    @classmethod
    def execute(
        cls,
        samples: dict[str, torch.Tensor],
        record: MagicFaceRecord | None = None,
        image: torch.Tensor | None = None,
        columns: int = 5,
    ) -> io.NodeOutput:
        drawn = previews.draw(record, samples["samples"], image, columns)
        return io.NodeOutput(*drawn, ui=ui.PreviewImage(drawn[0], cls=cls))


NODES = [MagicFaceReference, MagicFaceOptions, MagicFaceApply, MagicFacePreview]
