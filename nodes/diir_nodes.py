"""DIIR nodes: small faces of finished pictures repaired with an identity, everything else left as it is."""

from __future__ import annotations

from dataclasses import replace

import torch
from comfy.controlnet import ControlBase
from comfy.model_patcher import ModelPatcher
from comfy.sd import CLIP, VAE
from comfy_api.latest import io

from ..likeness.core.diir.request import CACHES, MODES, STYLES, DiirRequest
from ..likeness.drawing.pose import OPENPOSE
from ..likeness.drawing.pose import STYLES as LANDMARK_STYLES
from ..likeness.faces.interface import Faces
from ..likeness.hosts.comfy.compat import ADVANCED, schema
from ..likeness.hosts.comfy.diir import models, repair, settings, table
from ..likeness.hosts.comfy.diir.people import DEFAULT_PROMPT
from ..likeness.hosts.comfy.faces.models import CHOICES
from ..likeness.hosts.comfy.magicface.references import References
from ..likeness.hosts.comfy.magicid.identities import Identities
from ..likeness.hosts.comfy.persona.text import Personas
from .face_nodes import FacesType
from .identity_nodes import IdentitiesType
from .magicface_nodes import ReferencesType
from .persona_nodes import PersonasType

CATEGORY = "Likeness/DIIR"
OptionsType = io.Custom("LIKENESS_DIIR_OPTIONS")
DEFAULTS = DiirRequest()
#: the feather is shown in this part of the crop's side
FEATHER_UNIT = 128


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
            search_aliases=[
                "face detailer", "face restore", "face fix", "fix face", "repair face", "small faces", "face swap",
                "inversion", "inpaint face", "ADetailer", "identity", "MagicID", "修脸", "脸部修复", "人脸修复",
                "面部修复", "面部细化", "换脸", "崩脸",
            ],
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
    def execute(
        cls,
        image: torch.Tensor,
        model: ModelPatcher,
        clip: CLIP,
        vae: VAE,
        prompt: str,
        which: str,
        max_face_px: int,
        strength: float,
        seed: int,
        references: References | None = None,
        personas: Personas | None = None,
        identities: Identities | None = None,
        positive: list | None = None,
        negative: list | None = None,
        faces: Faces | None = None,
        options: settings.Options | None = None,
    ) -> io.NodeOutput:
        options = options or settings.Options()
        job = repair.Job(
            image, model, clip, vae, prompt, which, max_face_px, strength, seed,
            references=references, personas=personas, identities=identities, positive=positive, negative=negative,
            faces=faces, options=options,
        )  # fmt: skip
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
        IdentitiesType.Input(
            "identities",
            optional=True,
            tooltip="Who the faces are, from MagicID Identity nodes: one a person, the first with the first reference, "
            "and so on. Works with SD1.x and SDXL.",
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
        FacesType.Input(
            "faces",
            optional=True,
            tooltip="From Detect Faces, to choose or to wire other detectors. Unconnected: found here.",
        ),
        OptionsType.Input(
            "options", optional=True, tooltip="From DIIR Options or DIIR Landmark Control; unconnected: the defaults."
        ),
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
            search_aliases=[
                "face detailer settings", "face repair", "fix face", "MagicID", "修脸", "人脸修复", "面部修复设置",
            ],
            inputs=[*_method_inputs(), *_people_inputs(), *_crop_inputs(), _where_input()],
            outputs=[OptionsType.Output("options", "options", tooltip="For DIIR Face Repair.")],
        )

    @classmethod
    def execute(
        cls,
        mode: str,
        steps: int,
        guidance: float,
        keep_style: str,
        good_enough: float,
        strangers: str,
        people: str,
        faces_at_once: int,
        corrections: int = DEFAULTS.corrections,
        fast_strength: float = DEFAULTS.fast_strength,
        cache: str = DEFAULTS.cache,
        provider: str = settings.AUTO,
        upright: bool = True,
        frame: float = DEFAULTS.frame,
        feather: float = DEFAULTS.feather * FEATHER_UNIT,
        mask: str = settings.AUTO,
        where: torch.Tensor | None = None,
    ) -> io.NodeOutput:
        request = DiirRequest(
            mode=mode,
            steps=steps,
            guidance=guidance,
            keep_style=keep_style,
            corrections=corrections,
            fast_strength=fast_strength,
            cache=cache,
            upright=DEFAULTS.upright if upright else 180.0,
            frame=frame,
            feather=feather / FEATHER_UNIT,
        )
        who = {"good_enough": good_enough, "strangers": strangers, "people": people, "where": where}
        how = {"mask": mask, "provider": provider, "faces_at_once": faces_at_once}
        return io.NodeOutput(settings.Options(request=request, **who, **how))


class DiirLandmarkControl(io.ComfyNode):
    """A landmark ControlNet that keeps the pose of the repaired faces."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="LikenessDiirLandmarkControl",
            display_name="DIIR Landmark Control",
            category=CATEGORY,
            description="Repaired faces keep their pose and expression by a landmark ControlNet. Its picture is drawn "
            "anew for the crop of each face.",
            search_aliases=[
                "face controlnet", "face pose", "keep expression", "expression", "mediapipe face", "openpose face",
                "表情", "保持表情", "面部姿态", "修脸", "人脸修复",
            ],
            inputs=_control_inputs(),
            outputs=[OptionsType.Output("options_out", "options", tooltip="For DIIR Face Repair.")],
        )

    @classmethod
    def execute(
        cls,
        control_net: ControlBase,
        landmark_style: str,
        strength: float,
        end: float,
        options: settings.Options | None = None,
    ) -> io.NodeOutput:
        control = settings.Control(control_net, landmark_style, strength, end)
        return io.NodeOutput(replace(options or settings.Options(), control=control))


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


def _people_inputs() -> list[io.Input]:
    return [
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
            default=DEFAULTS.feather * FEATHER_UNIT,
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


def _where_input() -> io.Input:
    return io.Mask.Input("where", optional=True, tooltip="Only faces whose middle lies in this mask; any size.")


def _control_inputs() -> list[io.Input]:
    return [
        io.ControlNet.Input("control_net", tooltip="A landmark ControlNet of the model's family."),
        io.Combo.Input(
            "landmark_style",
            options=list(LANDMARK_STYLES),
            default=OPENPOSE,
            tooltip="What control_net was trained on. OpenPose and InstantID need five landmarks, MediaPipe more.",
        ),
        io.Float.Input(
            "strength", default=0.8, min=0.0, max=2.0, step=0.05, tooltip="How strongly control_net acts."
        ),
        io.Float.Input(
            "end",
            default=1.0,
            min=0.0,
            max=1.0,
            step=0.05,
            tooltip="Share of the steps after which control_net is off.",
        ),
        OptionsType.Input("options", optional=True, tooltip="From DIIR Options; unconnected: its defaults."),
    ]


NODES = [DiirFaceRepair, DiirOptions, DiirLandmarkControl]
