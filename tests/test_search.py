"""Every node is found by what people call it, in English and in Chinese."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CHINESE = re.compile(r"[\u4e00-\u9fff]")
#: what somebody types -> nodes that must be among the answers
WANTED = {
    "fix face": {"LikenessDiirFaceRepair"},
    "detailer": {"LikenessDiirFaceRepair", "LikenessDetectFaces"},
    "修脸": {"LikenessDiirFaceRepair"},
    "人脸修复": {"LikenessDiirFaceRepair"},
    "swap": {"LikenessDiirFaceRepair", "LikenessMagicIdApply", "LikenessMagicFaceApply"},
    "换脸": {"LikenessDiirFaceRepair", "LikenessMagicIdApply", "LikenessMagicFaceApply"},
    "reference": {"LikenessMagicFaceReference", "LikenessMagicIdIdentity"},
    "参考图": {"LikenessMagicFaceReference", "LikenessMagicIdIdentity"},
    "consistent character": {"LikenessMagicFaceApply", "LikenessMagicIdApply", "LikenessPersonaTrain"},
    "角色一致": {"LikenessMagicFaceApply", "LikenessMagicIdApply", "LikenessPersonaTrain"},
    "identity": {"LikenessMagicIdIdentity", "LikenessMagicFaceReference", "LikenessPersonaApply"},
    "faceid": {"LikenessLoadIdentityWeights", "LikenessMagicIdApply"},
    "multiple people": {"LikenessMagicIdApply", "LikenessMagicIdRegions"},
    "多人": {"LikenessMagicIdApply", "LikenessMagicIdRegions"},
    "训练": {"LikenessPersonaTrain"},
    "face detection": {"LikenessDetectFaces"},
    "人脸检测": {"LikenessDetectFaces"},
}


def _declared() -> Iterator[tuple[str, list[str]]]:
    """Node id and search words of every schema, read from the source: ComfyUI is not needed."""
    for file in sorted((ROOT / "nodes").glob("*.py")):
        for call in ast.walk(ast.parse(file.read_text("utf-8"))):
            given = {word.arg: word.value for word in call.keywords} if isinstance(call, ast.Call) else {}
            if "node_id" in given:
                words = given.get("search_aliases", ast.List([]))
                yield ast.literal_eval(given["node_id"]), ast.literal_eval(words)


NODES = dict(_declared())


@pytest.mark.parametrize("node", NODES)
def test_a_node_has_search_words_in_both_languages(node: str) -> None:
    words = NODES[node]
    assert len(words) == len(set(words))
    assert sum(not CHINESE.search(word) for word in words) >= 3
    assert sum(bool(CHINESE.search(word)) for word in words) >= 2


@pytest.mark.parametrize("typed", WANTED)
def test_what_somebody_types_finds_the_node(typed: str) -> None:
    found = {node for node, words in NODES.items() if any(typed in word.lower() for word in words)}
    assert found >= WANTED[typed]


def test_the_drawn_sample_does_not_stand_before_the_references() -> None:
    assert not any("reference" in word for word in NODES["LikenessMiniatureSample"])
