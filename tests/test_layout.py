"""The shape of the pack: who may import whom, and that every import inside it is relative."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HOST_MODULES = {
    "comfy", "comfy_api", "comfy_execution", "comfy_extras", "folder_paths", "latent_preview", "nodes", "node_helpers",
}
#: folder: what it may import from the pack
ALLOWED = {
    "core": {"core"},
    "faces": {"faces", "core", "miniature"},
    "miniature": {"miniature", "core", "hosts/diffusers", "faces", "training", "evaluation"},
    "hosts": {"hosts", "core"},
    "hosts/diffusers": {"hosts/diffusers", "hosts", "core"},
    "hosts/comfy": {"hosts/comfy", "hosts", "core", "miniature", "faces", "training"},
    "training": {"training", "core", "hosts", "hosts/diffusers", "miniature", "faces", "evaluation", "benchmarks"},
    "evaluation": {"evaluation", "core", "hosts/diffusers", "miniature", "faces", "training"},
    "benchmarks": {"benchmarks", "core", "hosts/diffusers", "miniature", "training"},
    "nodes": {"nodes", "hosts/comfy", "hosts", "core", "miniature", "faces"},
}
#: packages of others that the methods themselves may use
CORE_MAY_USE = {"torch", "numpy"}


def folder_of(path: Path) -> str:
    parts = path.relative_to(ROOT).parts
    return "/".join(parts[:2]) if parts[0] == "hosts" and len(parts) > 2 else parts[0]


FILES = sorted(
    file
    for folder in {name.split("/")[0] for name in ALLOWED}
    for file in (ROOT / folder).rglob("*.py")
    if folder_of(file) in ALLOWED
)


def imports(file: Path) -> list[tuple[int, str, list[str]]]:
    """``(level, module, names)`` of every import statement, wherever it stands."""
    found = []
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found += [(0, alias.name, []) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found.append((node.level, node.module or "", [alias.name for alias in node.names]))
    return found


def targets(file: Path) -> set[str]:
    """Folders of the pack that ``file`` imports from."""
    reached = set()
    for level, module, names in imports(file):
        if level:
            base = file.parents[level - 1].joinpath(*module.split(".") if module else ())
            for name in names:
                module_file = next((f for f in (base / f"{name}.py", base.with_suffix(".py")) if f.is_file()), None)
                reached.add(folder_of(module_file or base / name / "__init__.py"))
    return reached


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_imports_follow_the_direction(file: Path) -> None:
    assert targets(file) <= ALLOWED[folder_of(file)]


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_only_host_folders_import_comfyui(file: Path) -> None:
    used = {module.split(".")[0] for level, module, _ in imports(file) if not level}
    assert "likeness" not in used, "imports inside the pack are relative"
    if folder_of(file) not in ("nodes", "hosts/comfy"):
        assert not used & HOST_MODULES


def test_core_uses_torch_and_the_standard_library_only() -> None:
    import sys

    for file in (file for file in FILES if folder_of(file) == "core"):
        used = {module.split(".")[0] for level, module, _ in imports(file) if not level}
        assert used <= set(sys.stdlib_module_names) | CORE_MAY_USE, file


def test_the_check_sees_a_forbidden_import(tmp_path: Path) -> None:
    file = tmp_path / "bad.py"
    file.write_text("import comfy.utils\nfrom likeness.core import attention\n")
    assert [module for _, module, _ in imports(file)] == ["comfy.utils", "likeness.core"]


def test_entry_point_does_not_switch_itself_off() -> None:
    names = {
        target.id
        for node in ast.parse((ROOT / "__init__.py").read_text("utf-8")).body
        if isinstance(node, ast.Assign)
        for target in node.targets
    }
    assert "WEB_DIRECTORY" in names
    assert "NODE_CLASS_MAPPINGS" not in names, "ComfyUI ignores comfy_entrypoint when this name exists"


def test_shipped_files_stay_small() -> None:
    weights = [file.stat().st_size for file in (ROOT / "miniature" / "weights").glob("*.safetensors")]
    assert all(size <= 15 * 2**20 for size in weights)
    assert sum(weights) <= 40 * 2**20
