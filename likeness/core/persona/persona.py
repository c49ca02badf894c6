"""A persona: the trained mapper with all it needs to speak, and its plain form for saving."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ..errors import LikenessError, bad_input
from .mapper import Mapper, MapperConfig
from .stages import Stages
from .text import Speaker

FORMAT_VERSION = 1
KIND = "likeness.persona"


@dataclass(frozen=True)
class Persona:
    """What is learnt about one person, animal, object or style.

    Attributes:
        mapper: the words.
        stages: where in the schedule they are spoken.
        supercategory: the plain word of the other stages (``face``).
        image: ``N D`` image embeddings of the photos (None without residual branch); playing uses the first.
        base: what it was trained on: ``{"family": "sd1", "text_widths": [...], "context_width": ...}``.
        training: the training request, for the record.
    """

    mapper: Mapper
    stages: Stages
    supercategory: str
    image: Tensor | None = None
    name: str = "persona"
    base: dict = field(default_factory=dict)
    training: dict = field(default_factory=dict)

    @property
    def tokens(self) -> int:
        """Number of words it speaks."""
        return self.mapper.config.tokens

    def to(self, device: torch.device | str) -> Persona:
        """The persona with its mapper and image embeddings on a device; the mapper itself is moved."""
        image = None if self.image is None else self.image.to(device)
        return replace(self, mapper=self.mapper.to(device), image=image)

    @torch.no_grad()
    def speaker(self, timesteps: Tensor, positions: Tensor) -> Speaker:
        """Words and residuals for ``S`` timesteps at ``n`` positions of the prompt."""
        image = None if self.image is None else self.image[:1]
        out = self.mapper(timesteps, image)
        return Speaker(positions, out.words, out.residual)

    def check_base(self, text_widths: tuple[int, ...], where: str = "Persona: model") -> None:
        """The persona speaks only to text encoders of the widths it was trained with.

        Raises:
            LikenessError: another base model.
        """
        if tuple(text_widths) != self.mapper.config.widths:
            raise bad_input(
                where,
                f"text encoder widths {tuple(text_widths)}",
                f"{self.mapper.config.widths} ({self.base.get('family', 'the base')} that persona {self.name!r} was "
                "trained on)",
                "Load a checkpoint of that family, or train the persona on this one.",
            )

    def drift(self, supercategory: Tensor) -> float:
        """Cosine between the supercategory row it was trained with and this model's (1 = the same text encoder)."""
        return float(torch.nn.functional.cosine_similarity(self.mapper.supercategory, supercategory.float(), dim=0))


def persona_tensors(persona: Persona) -> dict[str, Tensor]:
    """Everything numeric, by name."""
    tensors = {f"mapper.{k}": v.detach().cpu().float().contiguous() for k, v in persona.mapper.state_dict().items()}
    if persona.image is not None:
        tensors["image"] = persona.image.detach().cpu().float().contiguous()
    return tensors


def persona_description(persona: Persona) -> dict:
    """Everything else, as plain JSON values."""
    return {
        "kind": KIND,
        "format": FORMAT_VERSION,
        "name": persona.name,
        "supercategory": persona.supercategory,
        "tokens": persona.tokens,
        "mapper": persona.mapper.config.to_dict(),
        "stages": {"low": persona.stages.low, "high": persona.stages.high, "late": persona.stages.late},
        "base": persona.base,
        "training": persona.training,
    }


def persona_from(tensors: dict[str, Tensor], description: dict, where: str = "Persona file") -> Persona:
    """Rebuild a persona from its two halves.

    Raises:
        LikenessError: another kind of file, a newer format, or tensors that do not fit.
    """
    _check_description(description, where)
    broken = [name for name, value in tensors.items() if not torch.isfinite(value).all()]
    if broken:
        raise bad_input(where, f"numbers that are not finite in {broken[0]}", "a whole persona file", "Train it again.")
    try:
        config = MapperConfig.from_dict(description["mapper"])
        state = {k.removeprefix("mapper."): v for k, v in tensors.items() if k.startswith("mapper.")}
        mapper = Mapper(config, state["supercategory"])
        mapper.load_state_dict(state)
        return Persona(
            mapper=mapper.eval().requires_grad_(False),
            stages=Stages(**description["stages"]),
            supercategory=description["supercategory"],
            image=_image(tensors.get("image"), config),
            name=description.get("name", "persona"),
            base=description.get("base", {}),
            training=description.get("training", {}),
        )
    except LikenessError:
        raise
    except (KeyError, TypeError, ValueError, RuntimeError, ArithmeticError) as cause:
        raise bad_input(where, f"contents that do not fit ({cause})", "a whole file", "Copy it again.") from cause


def _check_description(description: object, where: str) -> None:
    """Kind, format and the types of what :func:`persona_description` has written."""
    if not isinstance(description, dict) or description.get("kind") != KIND:
        kind = description.get("kind") if isinstance(description, dict) else description
        raise bad_input(where, f"a file of kind {kind!r}", repr(KIND), "Pick a persona saved by this pack.")
    version = description.get("format")
    if type(version) is not int:
        raise bad_input(where, f"format {version!r}", "a whole number", "Pick a persona saved by this pack.")
    if version > FORMAT_VERSION:
        raise bad_input(where, f"format {version}", f"at most {FORMAT_VERSION}", "Update this pack.")
    kinds = {"name": str, "supercategory": str, "mapper": dict, "stages": dict, "base": dict, "training": dict}
    for key, kind in kinds.items():
        if not isinstance(description.get(key, kind()), kind):
            came = f"{key} {description[key]!r}"
            raise bad_input(where, came, "what this pack writes", "Save the persona again, or pick another file.")


def _image(image: Tensor | None, config: MapperConfig) -> Tensor | None:
    """The image embeddings ``N D`` of a file, which its residual branch has to take."""
    if image is not None and (image.dim() != 2 or len(image) == 0 or image.shape[1] != config.image_width):
        raise ValueError(f"image embeddings of shape {tuple(image.shape)} for a branch of {config.image_width}")
    return image
