"""DIIR nodes: small faces of finished pictures repaired with an identity, everything else left as it is."""

from __future__ import annotations

from comfy_api.latest import io

from ..likeness.core.diir.request import CACHES, MODES, STYLES, DiirRequest
from ..likeness.drawing.pose import OPENPOSE
from ..likeness.drawing.pose import STYLES as LANDMARK_STYLES
from ..likeness.hosts.comfy.compat import ADVANCED, schema
from ..likeness.hosts.comfy.diir import models, repair, settings, table
from ..likeness.hosts.comfy.diir.people import DEFAULT_PROMPT
from ..likeness.hosts.comfy.faces.models import CHOICES
from .face_nodes import FacesType
from .magicface_nodes import ReferencesType
from .persona_nodes import PersonasType

CATEGORY = "Likeness/DIIR"
OptionsType = io.Custom("LIKENESS_DIIR_OPTIONS")
DEFAULTS = DiirRequest()


class DiirFaceRepair(io.ComfyNode):
    """Repair the small faces of a picture."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="LikenessDiirFaceRepair",
            display_name="DIIR Face Repair",
            category=CATEGORY,
            description="Repairs small broken faces of any picture with the right identity and touches nothing else: "
            "each face is cut out, inverted to noise (DDIM), drawn again by your checkpoint, and put back.",
            search_aliases=["face detailer", "face restore", "face fix", "inversion", "MagicID", "ADetailer"],
            inputs=[*_what_inputs(), *_how_inputs(), *_optional_inputs()],
            outputs=[
                io.Image.Output(
                    "image_out", "image", tooltip="The picture, faces repaired; every other pixel is the same."
                ),
                io.Mask.Output("changed", "changed", tooltip="How much of each pixel is new."),
                io.Image.Output("crops", "before | after", tooltip="Every repaired face, before and after."),
                io.String.Output(
                    "report", "report", tooltip="JSON: every face, its person, similarity, what was done or why not."
                ),
            ],
        )

    @classmethod
    def execute(cls, options: settings.Options | None = None, **inputs: object) -> io.NodeOutput:
        options = options or settings.Options()
        job = repair.Job(**inputs, options=options)
        found_here = models.face_models(job.model, options.provider, needed=job.faces is None)
        outcome = repair.repair_faces(job, found_here)
        return io.NodeOutput(outcome.image, outcome.mask, outcome.crops, outcome.report, ui=table.table(outcome))


def _what_inputs() -> list[io.Input]:
    return [
        io.Image.Input("image", tooltip="One picture or a batch, from any workflow, of any size."),
        io.Model.Input(
            "model",
            tooltip="SD1.x, SD2.x or SDXL: it draws the faces, whatever made the picture. LoRA, IP-Adapter and other "
            "patches on it act in the face.",
        ),
        io.Clip.Input("clip", tooltip="The model's text encoder; encodes the face prompt."),
        io.Vae.Input("vae", tooltip="The model's VAE."),
        io.String.Input(
            "prompt",
            default=DEFAULT_PROMPT,
            multiline=True,
            tooltip="What the face crops show, not the whole picture: name the person and, if it matters, the style. "
            "{person} stands for 'a man' (the reference's word) or a persona's S*. One line for all, or one a person.",
        ),
        io.String.Input(
            "which",
            default="",
            tooltip="Empty: the small faces. Or numbers from the table below: '1, 3'; '2:1' is face 1 of picture 2; or "
            "all, largest, none. Faces named here are repaired whatever their size.",
        ),
    ]


def _how_inputs() -> list[io.Input]:
    return [
        io.Int.Input(
            "max_face_px",
            default=DEFAULTS.max_face_px,
            min=0,
            max=4096,
            tooltip="Faces with a longer side of at least this many pixels stay: they gain nothing. 0: any size.",
        ),
        io.Float.Input(
            "strength",
            default=1.0,
            min=0.0,
            max=1.0,
            step=0.05,
            tooltip="Share of the steps that is drawn again. 1: the face is all new; less keeps more of the old one.",
        ),
        io.Int.Input(
            "seed",
            default=0,
            min=0,
            max=2**31 - 1,
            control_after_generate=True,
            tooltip="Noise on the references, and in the fast mode on the face. Each picture of a batch has its own.",
        ),
    ]


def _optional_inputs() -> list[io.Input]:
    return [
        ReferencesType.Input(
            "references",
            optional=True,
            tooltip="Who the faces are, from MagicFace Reference nodes: one a person. Each face gets its person by "
            "likeness, else by the reference's region, else from left to right.",
        ),
        PersonasType.Input(
            "personas",
            optional=True,
            tooltip="Personas, spoken through the face prompt: the first with the first reference, and so on.",
        ),
        io.Conditioning.Input(
            "positive",
            optional=True,
            tooltip="Instead of the face prompt, for identities that travel in conditioning (InstantID, PhotoMaker). "
            "Control pictures, masks and areas made for the whole picture are cut to each face.",
        ),
        io.Conditioning.Input(
            "negative", optional=True, tooltip="Negative prompt; unconnected: an empty one. Cut to the faces likewise."
        ),
        io.ControlNet.Input(
            "control_net",
            optional=True,
            tooltip="A landmark ControlNet of the model's family: the face keeps its pose. Its picture is drawn "
            "anew for each crop; landmark_style in DIIR Options must be the kind it was trained on.",
        ),
        FacesType.Input(
            "faces",
            optional=True,
            tooltip="From Detect Faces, to choose or to wire other detectors. Unconnected: found here.",
        ),
        io.Mask.Input("where", optional=True, tooltip="Only faces whose middle lies in this mask; any size."),
        OptionsType.Input("options", optional=True, tooltip="From DIIR Options; unconnected: its defaults."),
    ]


class DiirOptions(io.ComfyNode):
    """What most users of DIIR leave alone."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="LikenessDiirOptions",
            display_name="DIIR Options",
            category=CATEGORY,
            description="The method's settings for DIIR Face Repair: steps, guidance, style, masks, gates.",
            search_aliases=["face detailer", "face repair"],
            inputs=[*_method_inputs(), *_gate_inputs(), *_crop_inputs(), *_control_inputs()],
            outputs=[OptionsType.Output("options", "options", tooltip="For DIIR Face Repair.")],
        )

    @classmethod
    def execute(cls, feather, upright, mode, **widgets) -> io.NodeOutput:
        names = DiirRequest.__dataclass_fields__
        request = DiirRequest(
            mode=mode,
            feather=feather / 128,
            upright=DEFAULTS.upright if upright else 180.0,
            **{name: value for name, value in widgets.items() if name in names},
        )
        rest = {name: value for name, value in widgets.items() if name not in names}
        return io.NodeOutput(settings.Options(request=request, **rest))


def _method_inputs() -> list[io.Input]:
    return [
        io.Combo.Input(
            "mode",
            options=list(MODES),
            tooltip="exact: from the inversion of the face. fast: from the face with noise on it, half the work.",
        ),
        io.Int.Input(
            "steps", default=DEFAULTS.steps, min=1, max=200, tooltip="DDIM steps, of inversion and drawing each."
        ),
        io.Float.Input(
            "guidance",
            default=DEFAULTS.guidance,
            min=0.0,
            max=30.0,
            step=0.1,
            tooltip="CFG while drawing. Below 3 less of the identity arrives.",
        ),
        io.Combo.Input(
            "keep_style",
            options=list(STYLES),
            tooltip="off: the new face brings its own colours. latents, paper: it takes those of the old face, right "
            "or wrong (Eq. 5); paper also fuses attention features and takes more memory.",
        ),
        io.Int.Input(
            "corrections",
            default=DEFAULTS.corrections,
            min=0,
            max=4,
            tooltip="Fixed-point corrections of each inversion step: a closer inversion for as many more rows.",
            **ADVANCED,
        ),
        io.Float.Input(
            "fast_strength",
            default=DEFAULTS.fast_strength,
            min=0.0,
            max=1.0,
            step=0.05,
            tooltip="Denoising strength of the fast mode, times the node's strength.",
            **ADVANCED,
        ),
        io.Combo.Input(
            "cache",
            options=list(CACHES),
            tooltip="Where 'paper' keeps features: graphics memory, main memory, or nowhere, computing them again.",
            **ADVANCED,
        ),
    ]


def _gate_inputs() -> list[io.Input]:
    return [
        io.Int.Input("min_face_px", default=8, min=0, max=512, tooltip="Faces smaller than this stay."),
        io.Int.Input(
            "count", default=0, min=0, max=100, tooltip="At most so many faces a picture, the largest; 0: all."
        ),
        io.Float.Input(
            "good_enough",
            default=1.1,
            min=0.0,
            max=1.1,
            step=0.05,
            tooltip="Faces at least this similar to their person stay. Above 1: none stays for that.",
        ),
        io.Combo.Input(
            "strangers",
            options=list(settings.STRANGERS),
            tooltip="With references or personas: what happens to faces that are none of these people.",
        ),
        io.String.Input(
            "people",
            default="",
            tooltip="Who is who, where the node guesses wrong: the person of face 1, 2, ...: '2, 1'. 0: nobody, "
            "?: guess.",
        ),
        io.Combo.Input(
            "provider",
            options=list(dict.fromkeys((settings.AUTO, *CHOICES))),
            tooltip="Face models that find and compare faces. auto: the best that is installed.",
            **ADVANCED,
        ),
    ]


def _crop_inputs() -> list[io.Input]:
    return [
        io.Int.Input(
            "faces_at_once", default=8, min=1, max=64, tooltip="Most faces in one model call; fewer take less memory."
        ),
        io.Boolean.Input(
            "upright", default=True, tooltip="Turn faces tilted by over 10 degrees upright, and back.", **ADVANCED
        ),
        io.Float.Input(
            "frame",
            default=DEFAULTS.frame,
            min=1.2,
            max=4.0,
            step=0.1,
            tooltip="Side of the crop in heights of the face. Wider shows more of the body and repairs less.",
            **ADVANCED,
        ),
        io.Float.Input(
            "feather",
            default=DEFAULTS.feather * 128,
            min=0.0,
            max=32.0,
            step=0.5,
            tooltip="Width of the mask's soft edge, in 128ths of the crop's side.",
            **ADVANCED,
        ),
        io.Combo.Input(
            "mask",
            options=list(settings.MASKS),
            tooltip="How the head's outline is found: parsed (needs facexlib's weights), from landmarks, or an "
            "ellipse. auto: the first of these that is there.",
            **ADVANCED,
        ),
    ]


def _control_inputs() -> list[io.Input]:
    return [
        io.Combo.Input(
            "landmark_style",
            options=list(LANDMARK_STYLES),
            default=OPENPOSE,
            tooltip="What control_net was trained on. OpenPose and InstantID need five landmarks, MediaPipe more.",
            **ADVANCED,
        ),
        io.Float.Input(
            "control_strength",
            default=0.8,
            min=0.0,
            max=2.0,
            step=0.05,
            tooltip="How strongly control_net acts.",
            **ADVANCED,
        ),
        io.Float.Input(
            "control_end",
            default=1.0,
            min=0.0,
            max=1.0,
            step=0.05,
            tooltip="Share of the steps after which control_net is off.",
            **ADVANCED,
        ),
    ]


NODES = [DiirFaceRepair, DiirOptions]
