"""Face nodes: the models that find and compare faces, the faces of a picture, and pictures of their landmarks."""

from __future__ import annotations

from comfy_api.latest import io

from ..likeness.drawing.pose import STYLES
from ..likeness.faces.search import AUTO, EFFORTS
from ..likeness.faces.select import ORDERS, Gates
from ..likeness.hosts.comfy.compat import ADVANCED, schema
from ..likeness.hosts.comfy.faces import detect, landmark_pictures
from ..likeness.hosts.comfy.faces import models as faces

CATEGORY = "Likeness/Faces"
#: Face models, as Face Models gives them.
FaceModelsType = io.Custom("LIKENESS_FACE_MODELS")
#: Faces that were found: :class:`likeness.faces.interface.Faces`.
FacesType = io.Custom("LIKENESS_FACES")
#: Types of the host and of pose nodes.
FaceLandmarksType = io.Custom("FACE_LANDMARKS")
BoundingBoxType = io.Custom("BOUNDING_BOX")
PoseType = io.Custom("POSE_KEYPOINT")


class FaceModels(io.ComfyNode):
    """Choose the face models."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="LikenessFaceModels",
            display_name="Face Models",
            category=CATEGORY,
            description="A face detector with its embedder, which tells people apart: for Detect Faces and Persona "
            "Train.",
            search_aliases=[
                "face detection", "face recognition", "face similarity", "insightface", "yunet", "facenet",
                "mediapipe", "dlib", "identity", "人脸检测", "人脸识别", "人脸相似度", "身份",
            ],
            inputs=[
                io.Combo.Input(
                    "provider",
                    options=list(faces.CHOICES),
                    default=faces.AUTO,
                    tooltip="auto: the best for photographs that is installed, in this order: insightface, opencv "
                    "(YuNet, SFace), facenet, mediapipe, dlib. miniature: for the drawn people of the miniature only; "
                    "comes with the pack. Persona Train's identity loss needs facenet or miniature.",
                ),
                io.Combo.Input(
                    "pack",
                    options=list(faces.PACKS),
                    default=faces.AUTO,
                    optional=True,
                    tooltip="insightface only: the folder in models/insightface/models. FaceID adapters were made with "
                    "buffalo_l, InstantID and PuLID with antelopev2. auto: the first one that is there.",
                    **ADVANCED,
                ),
            ],
            outputs=[
                FaceModelsType.Output("faces", "face_models", tooltip="For Detect Faces and Persona Train Options.")
            ],
        )

    @classmethod
    def execute(cls, provider, pack=faces.AUTO) -> io.NodeOutput:
        return io.NodeOutput(faces.load(provider, pack))


class DetectFaces(io.ComfyNode):
    """Find the faces of pictures and choose among them."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="LikenessDetectFaces",
            display_name="Detect Faces",
            category=CATEGORY,
            description="Finds the faces of a picture or a batch, small, tilted and upside-down ones too, numbers "
            "them, and lets you choose. A picture without a face stops nothing.",
            search_aliases=[
                "face detection", "find faces", "face mask", "face bbox", "face crop", "face detailer", "landmarks",
                "人脸检测", "人脸识别", "面部检测", "脸部遮罩", "人脸关键点", "修脸",
            ],
            inputs=[
                io.Image.Input("image", tooltip="One picture or a batch, of any size."),
                FaceModelsType.Input(
                    "face_models",
                    optional=True,
                    tooltip="From Face Models. Nothing connected: the best for photographs that is installed.",
                ),
                io.MultiType.Input(
                    "found",
                    [FaceLandmarksType, BoundingBoxType],
                    optional=True,
                    tooltip="Faces that another node has found: the host's face landmarks, or bounding boxes. They are "
                    "then taken instead; connected face models add landmarks to boxes.",
                ),
                io.Mask.Input(
                    "where",
                    optional=True,
                    tooltip="Where to look: only faces whose middle lies in the mask count. Any size, stretched over "
                    "the picture.",
                ),
                *_gate_inputs(),
            ],
            outputs=[
                FacesType.Output("faces", "faces", tooltip="Those chosen, for DIIR Face Repair and Draw Landmarks."),
                io.Image.Output("overlay", "overlay", tooltip="The picture with frames, numbers and landmarks."),
                io.Mask.Output("mask", "mask", tooltip="The heads of the chosen faces with their hair."),
                BoundingBoxType.Output("bboxes", "bboxes", tooltip="A list of boxes for every picture."),
                io.String.Output("report", "report", tooltip="JSON: number, size, tilt, score and box of every face."),
            ],
        )

    @classmethod
    def execute(
        cls, image, face_models=None, found=None, where=None, which="", min_px=0, max_px=0, at_most=0,
        order="left to right", search=AUTO,
    ) -> io.NodeOutput:  # fmt: skip
        gates = Gates(smallest=min_px, largest=max_px, region=where, count=at_most, which=which)
        out = detect.detect(image, face_models, found, gates, order, search)
        return io.NodeOutput(out.faces, out.overlay, out.mask, out.boxes, out.report, ui=detect.face_table(out))


def _gate_inputs() -> list[io.Input]:
    """Which of the faces count, and how they are looked for."""
    return [
        io.String.Input(
            "which",
            default="",
            optional=True,
            tooltip="Which faces, by the numbers in the overlay: '1, 3' or '2-4', '2:1' for the first face of the "
            "second picture, or largest, all, none. The ticks in the table write it. Empty: all.",
        ),
        io.Int.Input(
            "min_px", default=0, min=0, max=16384, optional=True, tooltip="Least longer side of a face in pixels."
        ),
        io.Int.Input(
            "max_px",
            default=0,
            min=0,
            max=16384,
            optional=True,
            tooltip="Largest longer side of a face in pixels, to leave portraits alone. 0: no limit.",
        ),
        io.Int.Input(
            "at_most",
            default=0,
            min=0,
            max=1000,
            optional=True,
            tooltip="At most so many faces of a picture, the largest ones. 0: all.",
            **ADVANCED,
        ),
        io.Combo.Input(
            "order",
            options=list(ORDERS),
            default="left to right",
            optional=True,
            tooltip="How the faces of a picture are numbered.",
            **ADVANCED,
        ),
        io.Combo.Input(
            "search",
            options=list(EFFORTS),
            default=AUTO,
            optional=True,
            tooltip="quick: one look. auto: enlarged tiles where nothing or only tiny faces are found, turned views "
            "where nothing certain is found. thorough: all of these always, for upside-down faces among upright ones.",
            **ADVANCED,
        ),
    ]


class DrawLandmarks(io.ComfyNode):
    """Draw landmarks for a ControlNet."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="LikenessDrawLandmarks",
            display_name="Draw Landmarks",
            category=CATEGORY,
            description="Faces or poses on black, at the picture's size, as landmark ControlNets expect them.",
            search_aliases=[
                "openpose", "controlnet", "face mesh", "keypoints", "pose", "instantid", "人脸关键点", "面部网格",
                "姿态", "骨骼图",
            ],
            inputs=[
                io.MultiType.Input(
                    "landmarks",
                    [FacesType, PoseType, FaceLandmarksType],
                    tooltip="Faces of Detect Faces, POSE_KEYPOINT of a pose node, or the host's face landmarks.",
                ),
                io.Combo.Input(
                    "style",
                    options=list(STYLES),
                    tooltip="MediaPipe face: control_v2p_sd15_mediapipe_face, complete with 478 landmarks only. "
                    "OpenPose: bodies and 70 face points. Thick: the same for xinsir's SDXL ControlNet. InstantID: "
                    "five points.",
                ),
            ],
            outputs=[io.Image.Output("image", "image", tooltip="For Apply ControlNet.")],
        )

    @classmethod
    def execute(cls, landmarks, style) -> io.NodeOutput:
        return io.NodeOutput(landmark_pictures.draw_landmarks(landmarks, style))


NODES = [FaceModels, DetectFaces, DrawLandmarks]
