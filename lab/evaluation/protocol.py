"""What is compared: a protocol file in YAML, and the folders it names.

A folder of references holds one folder a person; a method's folder holds one folder a person (``anna``) or group
(``anna+ben``, left to right). A picture's name begins with the number of its prompt's line (``3_1.png``, or ``3.png``),
or its prompt stands beside it (``any.png``, ``any.txt``).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import yaml

from lab.evaluation.cache import pictures_in
from lab.evaluation.scores import FaceRule
from likeness.core.errors import bad_input
from likeness.faces.geometry import Box

METRICS = {
    "clip_t": "CLIP-T", "t_sim": "T-Sim", "clip_i": "CLIP-I", "dino": "DINO", "face_sim": "FaceSim", "i_pre": "I-Pre",
    "fid": "FID", "fid_face": "FID (face)",
}  # fmt: skip
LOWER_IS_BETTER = ("fid", "fid_face")
SHIPPED = Path(__file__).parent / "protocols"


@dataclass(frozen=True)
class Protocol:
    """Everything a comparison needs; relative paths are those of the protocol's own folder.

    Attributes:
        title: heading of the table. metrics: its columns, of :data:`METRICS`.
        references: folder of one folder a person. prompts: file of one prompt a line.
        methods: name -> folder of pictures, in the table's order. baseline: which of them the others are compared with.
        real: folder of the FID's real pictures, subfolders included; the references where it is left out.
        regions: YAML file of designated boxes: group, or group and picture -> boxes in shares of width and height.
        placeholder, supercategory: the first is read as the second in prompts (PersonaMagic: S* as face).
        provider, pack: who finds and embeds faces.
        rule: when a face counts for FaceSim.
        percent: whether cosines are printed times 100.
        published: method -> metric -> the paper's number, printed below ours.
    """

    title: str = "Evaluation"
    metrics: tuple[str, ...] = ("clip_t", "clip_i", "dino", "face_sim", "fid", "fid_face")
    references: Path | None = None
    prompts: Path | None = None
    methods: Mapping[str, Path] = field(default_factory=dict)
    baseline: str = ""
    real: Path | None = None
    regions: Path | None = None
    placeholder: str = ""
    supercategory: str = "face"
    provider: str = "insightface"
    pack: str = ""
    rule: FaceRule = field(default_factory=FaceRule)
    percent: bool = False
    published: Mapping[str, Mapping[str, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Shot:
    """One picture of a method: its file, whose it is (left to right), its prompt, and the people's designated boxes in
    shares of width and height."""

    file: Path
    people: tuple[str, ...]
    prompt: str | None
    regions: tuple[Box, ...] | None

    @property
    def group(self) -> str:
        """The name of its folder."""
        return "+".join(self.people)


def load_protocol(path: Path) -> Protocol:
    """Read a protocol file, or one of the shipped ones by its name.

    Raises:
        LikenessError: there is no such file, or it holds what is not understood.
    """
    shipped = SHIPPED / f"{path}.yaml"
    path = path if path.is_file() or not shipped.is_file() else shipped
    if not path.is_file():
        names = ", ".join(sorted(file.stem for file in SHIPPED.glob("*.yaml")))
        raise bad_input("evaluation: protocol", f"{path}, which is no file", f"a YAML file, or one of {names}", "")
    return parse_protocol(read_yaml(path), path.parent)


def parse_protocol(data: Mapping[str, Any], folder: Path) -> Protocol:
    """A protocol from plain values; paths are resolved against ``folder``."""
    known = {f.name for f in fields(Protocol)}
    if unknown := set(data) - known:
        raise bad_input("evaluation: protocol", f"unknown keys {sorted(unknown)}", ", ".join(sorted(known)), "")
    if unknown := set(data.get("metrics", ())) - set(METRICS):
        raise bad_input("evaluation: metrics", f"{sorted(unknown)}", ", ".join(METRICS), "Correct the protocol.")
    values = {**data, "rule": _rule(data.get("rule", {}))}
    for name in ("references", "prompts", "real", "regions"):
        values[name] = folder / data[name] if data.get(name) else None
    values["methods"] = {name: folder / path for name, path in (data.get("methods") or {}).items()}
    values["metrics"] = tuple(data.get("metrics", Protocol.metrics))
    return Protocol(**values)


def _rule(data: Mapping[str, Any]) -> FaceRule:
    try:
        return FaceRule(**data)
    except TypeError as cause:
        names = ", ".join(f.name for f in fields(FaceRule))
        raise bad_input("evaluation: rule", f"{dict(data)}", f"some of {names}", "Correct the protocol.") from cause


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file that holds a table.

    Raises:
        LikenessError: it does not.
    """
    try:
        data = yaml.safe_load(path.read_text("utf-8"))
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as cause:
        raise bad_input("evaluation", f"{path} ({cause})", "a YAML file", "Correct it.") from cause
    if not isinstance(data, dict):
        raise bad_input("evaluation", f"{path}, which holds no table", "`name: value` lines", "Correct it.")
    return data


def people_of(protocol: Protocol) -> dict[str, list[Path]]:
    """Person -> reference pictures.

    Raises:
        LikenessError: there is no folder, or nobody in it.
    """
    folder = protocol.references
    if folder is None or not folder.is_dir():
        raise bad_input("evaluation: --references", folder or "nothing", "a folder with one folder a person",
                        "Name it by --references or in the protocol.")
    people = {part.name: pictures_in(part) for part in sorted(folder.iterdir()) if pictures_in(part)}
    if not people:
        raise bad_input("evaluation: --references", f"{folder}, in which no subfolder holds a picture",
                        "one folder of pictures a person", "Move each person's pictures into a folder of their own.")
    return people


def shots_of(protocol: Protocol, method: str) -> list[Shot]:
    """All pictures of a method whose people are known.

    Raises:
        LikenessError: the folder is not there, holds none, or names somebody without references.
    """
    folder, people = protocol.methods[method], people_of(protocol)
    groups = [part for part in sorted(folder.iterdir()) if pictures_in(part)] if folder.is_dir() else []
    if not groups:
        raise bad_input(f"evaluation: {method}", f"{folder}, in which no subfolder holds a picture",
                        "one folder of pictures a person or group", "See run.py evaluation --help for the names.")
    prompts = read_prompts(protocol)
    regions = read_yaml(protocol.regions) if protocol.regions else {}
    shots = []
    for group in groups:
        names = tuple(group.name.split("+"))
        if unknown := set(names) - set(people):
            raise bad_input(f"evaluation: {method}", f"a folder '{group.name}' with unknown {sorted(unknown)}",
                            f"people of the references: {', '.join(people)}", "Rename it or add references.")
        shots += [
            Shot(file, names, prompt_of(file, prompts, protocol), boxes_of(regions, group.name, file, len(names)))
            for file in pictures_in(group)
        ]
    return shots


def read_prompts(protocol: Protocol) -> list[str]:
    """The prompts, one a line."""
    path = protocol.prompts
    if path is None:
        return []
    if not path.is_file():
        raise bad_input("evaluation: --prompts", f"{path}, which is no file", "a text file, one prompt a line", "")
    return [line.strip() for line in path.read_text("utf-8").splitlines() if line.strip()]


def prompt_of(file: Path, prompts: list[str], protocol: Protocol) -> str | None:
    """The prompt of a picture with the placeholder replaced; None where it is not told."""
    beside, number = file.with_suffix(".txt"), re.match(r"(\d+)(?:_|$)", file.stem)
    if beside.is_file():
        prompt = beside.read_text("utf-8").strip()
    elif prompts and number:
        line = int(number[1])
        if not 1 <= line <= len(prompts):
            raise bad_input("evaluation: picture", f"{file}, prompt {line}", f"1 to {len(prompts)}",
                            "A picture's name begins with the number of its prompt's line, counted from 1.")
        prompt = prompts[line - 1]
    else:
        return None
    return prompt.replace(protocol.placeholder, protocol.supercategory) if protocol.placeholder else prompt


def boxes_of(regions: Mapping[str, Any], group: str, file: Path, count: int) -> tuple[Box, ...] | None:
    """The designated boxes of a picture: its own, else those of its group."""
    boxes = regions.get(f"{group}/{file.name}", regions.get(group))
    if boxes is None:
        return None
    right = isinstance(boxes, list) and len(boxes) == count and all(isinstance(b, list) and len(b) == 4 for b in boxes)
    if not right:
        raise bad_input("evaluation: regions", f"{group}: {boxes}", f"{count} boxes [x0, y0, x1, y1] from 0 to 1", "")
    return tuple(tuple(map(float, box)) for box in boxes)


def with_changes(protocol: Protocol, **changes: Any) -> Protocol:
    """The protocol with the values that are not None changed."""
    return replace(protocol, **{name: value for name, value in changes.items() if value is not None})
