"""Face models for the nodes that compare or find faces."""

from __future__ import annotations

from comfy_api.latest import io

from ..likeness.hosts.comfy.compat import schema
from ..likeness.hosts.comfy.faces import models as faces

#: Face models, as Face Models gives them.
FaceModelsType = io.Custom("LIKENESS_FACE_MODELS")
#: Faces that were found: :class:`likeness.faces.interface.Faces`.
FacesType = io.Custom("LIKENESS_FACES")


class FaceModels(io.ComfyNode):
    """Choose the face models."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="LikenessFaceModels",
            display_name="Face Models",
            category="Likeness/Persona",
            description="A face detector and a face embedder, for Persona Train: they make the mask and judge the "
            "identity.",
            search_aliases=["face detection", "facenet", "mtcnn", "identity"],
            inputs=[
                io.Combo.Input(
                    "provider",
                    options=list(faces.CHOICES),
                    tooltip="facenet: for photographs; needs the Python package facenet-pytorch, and for the identity "
                    "loss a weights file in models/facenet. miniature: for the drawn people of the miniature only; "
                    "comes with the pack.",
                )
            ],
            outputs=[FaceModelsType.Output("faces", "faces", tooltip="For the input faces of Persona Train.")],
        )

    @classmethod
    def execute(cls, provider) -> io.NodeOutput:
        return io.NodeOutput(faces.load(provider))


NODES = [FaceModels]
