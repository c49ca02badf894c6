"""PersonaMagic nodes: learn a person from a picture, keep it as a file, and put it into any prompt."""

from __future__ import annotations

import torch
from comfy.clip_vision import ClipVisionModel
from comfy.model_patcher import ModelPatcher
from comfy.sd import CLIP, VAE
from comfy_api.latest import io, ui

from ..likeness.core.persona.stages import LATE_CHOICES
from ..likeness.core.persona.tandem import TandemConfig
from ..likeness.drawing.curves import draw_iou, draw_loss
from ..likeness.faces.interface import FaceModels
from ..likeness.hosts.comfy.compat import ADVANCED, schema
from ..likeness.hosts.comfy.images import mask_to_torch, painted, to_torch
from ..likeness.hosts.comfy.persona import files
from ..likeness.hosts.comfy.persona.apply import apply
from ..likeness.hosts.comfy.persona.text import NamedPersona, Personas, join
from ..likeness.hosts.comfy.persona.train import TrainOptions, learn, prompt_lines
from ..likeness.training.persona.request import PRECISIONS, PersonaTraining
from .face_nodes import FaceModelsType

CATEGORY = "Likeness/Persona"
PersonasType = io.Custom("LIKENESS_PERSONAS")
TrainOptionsType = io.Custom("LIKENESS_PERSONA_TRAIN_OPTIONS")

FIXED, MEASURED = "fixed", "from attention"
#: Length of the image embedding where the residual branch is on; the training finds the true one.
SOME_WIDTH = 512


def _placeholder() -> io.String.Input:
    return io.String.Input(
        "placeholder",
        default="S*",
        tooltip="What stands for the persona in prompts. With several personas in one prompt give each its own: "
        "S1*, S2*.",
    )


def _further() -> io.Input:
    return PersonasType.Input(
        "personas", optional=True, tooltip="Further personas for the same prompt, from another persona node."
    )


def _output() -> io.Output:
    return PersonasType.Output("personas_out", "personas", tooltip="For Persona Apply, Save, or the next persona node.")


class PersonaTrain(io.ComfyNode):
    """Learn a persona from one or several pictures."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="LikenessPersonaTrain",
            display_name="Persona Train",
            category=CATEGORY,
            description="Learns a person, animal, object or style from one or more pictures (PersonaMagic). The model "
            "itself is not changed; what is learnt is a file of about 5 MB.",
            search_aliases=[
                "personalization", "textual inversion", "face training", "train face", "train character", "identity",
                "consistent character", "dreambooth", "训练人脸", "训练角色", "炼丹", "个性化", "角色一致",
                "文本反转",
            ],
            inputs=[
                io.Model.Input(
                    "model", tooltip="SD1.x, SD2.x or SDXL, unquantised. Stays as it is; LoRAs on it count."
                ),
                io.Clip.Input("clip", tooltip="The model's text encoder."),
                io.Vae.Input("vae", tooltip="The model's VAE."),
                io.Image.Input("image", tooltip="One picture, or a batch of several of the same person."),
                io.String.Input(
                    "supercategory",
                    default="face",
                    tooltip="The plain word for what is learnt: face, cat, cup, watercolor. It conditions the steps in "
                    "which the persona is silent. A word of several tokens is averaged.",
                ),
                _placeholder(),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="Where the person is: one for all pictures or one each, any size. Without it one is made "
                    "with CLIPSeg if its weights are in models/clipseg, else an ellipse round the face if there are "
                    "face models.",
                ),
                _further(),
                TrainOptionsType.Input(
                    "options",
                    optional=True,
                    tooltip="From Persona Train Options: steps, stage, previews and the rest. Without it the published "
                    "settings hold: 1000 steps of two samples.",
                ),
            ],
            outputs=[
                _output(),
                io.Image.Output("loss", "loss", tooltip="The loss over the steps, and its running mean."),
                io.Image.Output("stages_picture", "stages", tooltip="IoU over timesteps and the stage that was found."),
                io.Image.Output("preview", "preview", tooltip="The last preview; grey if previews are off."),
            ],
        )

    @classmethod
    def execute(
        cls,
        model: ModelPatcher,
        clip: CLIP,
        vae: VAE,
        image: torch.Tensor,
        supercategory: str,
        placeholder: str,
        mask: torch.Tensor | None = None,
        personas: Personas | None = None,
        options: TrainOptions | None = None,
    ) -> io.NodeOutput:
        pictures = to_torch(image)
        mask = painted(mask)
        masks = None if mask is None else mask_to_torch(mask, source="Persona Train: mask")
        options = options or TrainOptions()
        learned = learn(model, clip, vae, pictures, masks, supercategory, options)
        chain = join(personas, NamedPersona(placeholder, learned.persona), "Persona Train: placeholder")
        shown = learned.preview if options.preview_every else learned.loss
        return io.NodeOutput(chain, learned.loss, learned.iou, learned.preview, ui=ui.PreviewImage(shown, cls=cls))


class PersonaTrainOptions(io.ComfyNode):
    """What most users of Persona Train leave alone."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="LikenessPersonaTrainOptions",
            display_name="Persona Train Options",
            category=CATEGORY,
            description="Finer settings for Persona Train. Without this node it works with the values shown here.",
            search_aliases=[
                "training settings", "learning rate", "steps", "identity loss", "PersonaMagic", "训练参数", "学习率",
                "训练设置",
            ],
            inputs=[*_training_inputs(), *_stage_inputs(), *_persona_inputs(), *_picture_inputs(), *_run_inputs()],
            outputs=[TrainOptionsType.Output("options_out", "options", tooltip="For Persona Train.")],
        )

    @classmethod
    def execute(
        cls,
        steps: int,
        batch: int,
        learning_rate: float,
        training_seed: int,
        precision: str,
        checkpointing: bool,
        stages: str,
        low: int,
        high: int,
        late: str,
        lambda1: float,
        lambda2: float,
        warmup: int,
        tokens: int,
        residual: bool,
        style: bool,
        tandem: float,
        identity: float,
        templates: str,
        tandem_prompts: str,
        size: int,
        crop: bool,
        name: str,
        resume: bool,
        preview_every: int,
        preview_prompt: str,
        clip_vision: ClipVisionModel | None = None,
        faces: FaceModels | None = None,
    ) -> io.NodeOutput:
        request = PersonaTraining(
            steps=steps,
            batch=batch,
            learning_rate=learning_rate,
            seed=training_seed,
            precision=precision,
            checkpointing=checkpointing,
            stages="fixed" if stages == FIXED else "iou",
            low=low,
            high=high,
            late=late,
            lambda1=lambda1,
            lambda2=lambda2,
            warmup=warmup,
            tokens=tokens,
            image_width=SOME_WIDTH if residual else 0,
            style=style,
            tandem=TandemConfig(weight=tandem),
            identity=identity,
            templates=prompt_lines(templates, "templates"),
            tandem_prompts=prompt_lines(tandem_prompts, "tandem_prompts"),
        )
        return io.NodeOutput(
            TrainOptions(
                request=request,
                side=size,
                crop=crop,
                name=name,
                resume=resume,
                preview_every=preview_every,
                preview_prompt=preview_prompt,
                clip_vision=clip_vision,
                faces=faces,
            )
        )


def _training_inputs() -> list[io.Input]:
    return [
        io.Int.Input("steps", default=1000, min=1, max=20000, tooltip="Training steps. The paper uses 1000."),
        io.Int.Input("batch", default=2, min=1, max=16, tooltip="Samples a step. The paper uses 2."),
        io.Float.Input(
            "learning_rate", default=1e-4, min=1e-6, max=1e-1, step=1e-6, tooltip="AdamW's step size (1e-4)."
        ),
        io.Int.Input(
            "training_seed",
            default=0,
            min=0,
            max=2**31 - 1,
            tooltip="The same seed and inputs give the same persona; independent of the pictures' seed.",
        ),
        io.Combo.Input(
            "precision",
            options=list(PRECISIONS),
            tooltip="Type the UNet computes in. bf16 halves the memory on GPUs that have it.",
        ),
        io.Boolean.Input("checkpointing", default=False, tooltip="Less memory, more time: recompute blocks backwards."),
    ]


def _stage_inputs() -> list[io.Input]:
    return [
        io.Combo.Input(
            "stages",
            options=[FIXED, MEASURED],
            tooltip="Where in the schedule the persona speaks. fixed: timesteps low to high. from attention: a short "
            "warm-up, then where the attention map meets the mask (lambda1, lambda2).",
        ),
        io.Int.Input("low", default=400, min=0, max=998, tooltip="Lowest timestep of the stage."),
        io.Int.Input("high", default=800, min=1, max=999, tooltip="Highest timestep of the stage."),
        io.Combo.Input(
            "late",
            options=list(LATE_CHOICES),
            tooltip="Below the stage: keep the last words (held), or go back to the plain word, which keeps more of "
            "the scene where the stage begins high.",
        ),
        io.Float.Input(
            "lambda1",
            default=0.7,
            min=0.0,
            max=1.0,
            step=0.01,
            tooltip="IoU above which the stage begins, for stages from attention.",
            **ADVANCED,
        ),
        io.Float.Input(
            "lambda2",
            default=0.8,
            min=0.0,
            max=1.0,
            step=0.01,
            tooltip="IoU above which it ends; 1 leaves it open.",
            **ADVANCED,
        ),
        io.Int.Input(
            "warmup", default=200, min=1, max=5000, tooltip="Warm-up steps before attention is measured.", **ADVANCED
        ),
    ]


def _persona_inputs() -> list[io.Input]:
    return [
        io.Int.Input("tokens", default=4, min=1, max=16, tooltip="Words per persona."),
        io.Boolean.Input("residual", default=True, tooltip="The residual branch with the picture's embedding."),
        io.Boolean.Input("style", default=False, tooltip="Learn a manner of drawing, not a thing."),
        io.Float.Input(
            "tandem",
            default=0.001,
            min=0.0,
            max=10.0,
            step=0.0001,
            tooltip="Weight of Tandem Equilibrium, which keeps the other words of the prompt heard. 0: off.",
        ),
        io.Float.Input(
            "identity",
            default=0.0,
            min=0.0,
            max=10.0,
            step=0.01,
            tooltip="Weight of the identity loss: at timesteps below 600 the estimate is decoded and its face compared "
            "with the picture's. Needs faces, more memory and more time. 0: off.",
        ),
        io.String.Input(
            "templates",
            default="",
            multiline=True,
            tooltip="Prompts to learn with, one a line, {} for the persona: 'a photo of {}'. Empty: the pack's own 28.",
            **ADVANCED,
        ),
        io.String.Input(
            "tandem_prompts",
            default="",
            multiline=True,
            tooltip="Prompts for Tandem Equilibrium, one a line, {} for the persona. Empty: the pack's own 40.",
            **ADVANCED,
        ),
    ]


def _picture_inputs() -> list[io.Input]:
    return [
        io.Int.Input(
            "size",
            default=0,
            min=0,
            max=2048,
            step=8,
            tooltip="Side of the training pictures in pixels; 0: the model's own.",
        ),
        io.Boolean.Input("crop", default=False, tooltip="Cut pictures to a square instead of stretching them to one."),
    ]


def _run_inputs() -> list[io.Input]:
    return [
        io.String.Input(
            "name", default="persona", tooltip="Name of the persona; an unfinished training resumes by it."
        ),
        io.Boolean.Input("resume", default=True, tooltip="Go on with a training of this name that was cut short."),
        io.Int.Input(
            "preview_every", default=0, min=0, max=5000, tooltip="Draw a preview every so many steps; 0: none."
        ),
        io.String.Input(
            "preview_prompt", default="a photo of S*", tooltip="What previews show; S* is the persona being learnt."
        ),
        io.ClipVision.Input(
            "clip_vision",
            optional=True,
            tooltip="CLIP vision for the residual branch (the paper: ViT-B/32). Without it pooled latents are used.",
        ),
        FaceModelsType.Input(
            "faces",
            optional=True,
            tooltip="Face Models, for the identity loss, and for an ellipse as mask where none is connected.",
        ),
    ]


class PersonaApply(io.ComfyNode):
    """Put personas into a prompt."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="LikenessPersonaApply",
            display_name="Persona Apply",
            category=CATEGORY,
            description="Encodes a prompt that contains personas. Use both outputs with the sampler: the conditioning "
            "carries the personas, the model speaks them at the right steps, whatever the sampler.",
            search_aliases=[
                "personalization", "identity", "prompt", "face", "consistent character", "PersonaMagic", "角色一致",
                "人物一致", "个性化", "人脸", "身份", "提示词",
            ],
            inputs=[
                io.Model.Input("model", tooltip="The base the persona was trained on, or a relative of it."),
                io.Clip.Input("clip", tooltip="Its text encoder."),
                PersonasType.Input("personas", tooltip="From Persona Load or Persona Train; chain several."),
                io.String.Input(
                    "prompt",
                    default="a photo of S* in the snow",
                    multiline=True,
                    dynamic_prompts=True,
                    tooltip="What to draw; every persona's placeholder exactly once. Weights such as (S*:1.2) and "
                    "long prompts work as everywhere.",
                ),
                io.Conditioning.Input(
                    "positive",
                    optional=True,
                    tooltip="The prompt with the plain word already encoded, perhaps with areas, ControlNet or another "
                    "text in it: the personas are put into it instead of encoding the prompt here. It is passed on "
                    "when this node is bypassed.",
                ),
            ],
            outputs=[
                io.Model.Output("model_out", "model", tooltip="For the sampler."),
                io.Conditioning.Output("positive_out", "positive", tooltip="The prompt with its personas."),
            ],
        )

    @classmethod
    def execute(
        cls, model: ModelPatcher, clip: CLIP, personas: Personas, prompt: str, positive: list | None = None
    ) -> io.NodeOutput:
        return io.NodeOutput(*apply(model, clip, personas, prompt, positive))


class PersonaLoad(io.ComfyNode):
    """Load a persona file."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="LikenessPersonaLoad",
            display_name="Persona Load",
            category=CATEGORY,
            description="Loads a persona from models/personas.",
            search_aliases=[
                "personalization", "identity", "embedding", "load character", "PersonaMagic", "加载角色", "加载人物",
                "嵌入", "身份",
            ],
            inputs=[
                io.Combo.Input(
                    "persona", options=files.list_personas(), tooltip="A file in the models folder 'personas'."
                ),
                _placeholder(),
                _further(),
            ],
            outputs=[_output(), io.String.Output("about", "about", tooltip="What is known about the persona.")],
        )

    @classmethod
    def validate_inputs(cls, persona: str | None) -> bool | str:
        """Accept files saved since the page was loaded, and names that another node gives (None until it runs)."""
        if persona is None:
            return True
        try:
            files.find_persona(persona)
        except ValueError as error:
            return str(error)
        return True

    @classmethod
    def fingerprint_inputs(cls, persona: str | None, **_: object) -> float:
        """Read the file again when it was replaced; a name from another node is a new input whenever it changes."""
        if persona is None:
            return 0.0
        return files.find_persona(persona).stat().st_mtime

    @classmethod
    def execute(cls, persona: str, placeholder: str, personas: Personas | None = None) -> io.NodeOutput:
        loaded = files.load(persona)
        return io.NodeOutput(
            join(personas, NamedPersona(placeholder, loaded), "Persona Load: placeholder"),
            files.describe(loaded),
        )


class PersonaSave(io.ComfyNode):
    """Save a persona to a file."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="LikenessPersonaSave",
            display_name="Persona Save",
            category=CATEGORY,
            description="Writes a persona to models/personas as one safetensors file.",
            search_aliases=[
                "save embedding", "save character", "export persona", "identity", "PersonaMagic", "保存角色",
                "保存人物", "导出", "身份",
            ],
            is_output_node=True,
            inputs=[
                PersonasType.Input("personas", tooltip="The last persona of the chain is saved."),
                io.String.Input("name", default="my_persona", tooltip="File name, without ending."),
                io.Boolean.Input(
                    "overwrite", default=False, tooltip="Replace a file of that name; off: a number is added."
                ),
            ],
            outputs=[io.String.Output("path", "path", tooltip="The file that was written.")],
        )

    @classmethod
    def execute(cls, personas: Personas, name: str, overwrite: bool) -> io.NodeOutput:
        path = files.save(personas[-1].persona, name, overwrite)
        return io.NodeOutput(str(path), ui=ui.PreviewText(f"saved as {path.name}"))


class PersonaInfo(io.ComfyNode):
    """Show what is known about the personas of a chain, and list the folder."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="LikenessPersonaInfo",
            display_name="Persona Info",
            category=CATEGORY,
            description="Lists the personas of a chain and the files in models/personas, and draws the stage of the "
            "last one.",
            search_aliases=[
                "list personas", "persona metadata", "training info", "PersonaMagic", "角色列表", "训练信息", "查看",
            ],
            is_output_node=True,
            inputs=[PersonasType.Input("personas", optional=True, tooltip="A chain of personas; may be empty.")],
            outputs=[
                io.String.Output("about", "about", tooltip="The chain in words."),
                io.String.Output("files", "files", tooltip="Names of the files in models/personas, one a line."),
                io.Image.Output("stages_picture", "stages", tooltip="IoU over timesteps and the dynamic stage."),
            ],
        )

    @classmethod
    def execute(cls, personas: Personas | None = None) -> io.NodeOutput:
        chain = personas or ()
        about = "\n\n".join(f"{item.placeholder}\n{files.describe(item.persona)}" for item in chain)
        names = "\n".join(files.list_personas())
        picture = draw_iou(chain[-1].persona) if chain else draw_loss([])
        return io.NodeOutput(about, names, picture, ui=ui.PreviewText(about or names))


class PersonaImport(io.ComfyNode):
    """Import a mapper of the authors' code."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="LikenessPersonaImport",
            display_name="Persona Import",
            category=CATEGORY,
            description="Reads mapper-steps-N.pt of the published PersonaMagic code. Nothing in the file is run; a "
            "file that asks for more than tensors is refused.",
            search_aliases=[
                "mapper-steps", "load mapper", "convert persona", "PersonaMagic checkpoint", "导入角色", "导入模型",
                "转换",
            ],
            inputs=[
                io.Clip.Input("clip", tooltip="Text encoder of the base it was trained on; gives the word's vector."),
                io.String.Input("path", default="", tooltip="Path of mapper-steps-N.pt."),
                io.String.Input("supercategory", default="face", tooltip="The word it was trained with."),
                _placeholder(),
                io.Int.Input("low", default=400, min=0, max=998, tooltip="Lowest trained timestep.", **ADVANCED),
                io.Int.Input("high", default=800, min=1, max=999, tooltip="Highest trained timestep.", **ADVANCED),
                io.Image.Input("image", optional=True, tooltip="The picture it was trained on, for the residual."),
                io.ClipVision.Input("clip_vision", optional=True, tooltip="CLIP ViT-B/32, to embed that picture."),
                _further(),
            ],
            outputs=[_output()],
        )

    @classmethod
    def execute(
        cls,
        clip: CLIP,
        path: str,
        supercategory: str,
        placeholder: str,
        low: int,
        high: int,
        image: torch.Tensor | None = None,
        clip_vision: ClipVisionModel | None = None,
        personas: Personas | None = None,
    ) -> io.NodeOutput:
        persona = files.import_persona(clip, path, supercategory, (low, high), image, clip_vision)
        return io.NodeOutput(join(personas, NamedPersona(placeholder, persona), "Persona Import: placeholder"))


NODES = [PersonaTrain, PersonaTrainOptions, PersonaApply, PersonaLoad, PersonaSave, PersonaInfo, PersonaImport]
