"""The shape of the pack: floors, of which each imports only lower ones, and who may import ComfyUI."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HOST_MODULES = {
    "comfy", "comfy_api", "comfy_execution", "comfy_extras", "folder_paths", "latent_preview", "nodes", "node_helpers",
}
#: From the ground up: a file imports from its own floor and from lower ones. A folder's own files (``core/*.py``) lie
#: below its subfolders, and subfolders on one floor do not import each other unless they are named in order.
FLOORS = (
    ("likeness/core",),
    ("likeness/core/magicface", "likeness/core/persona", "likeness/core/magicid", "likeness/core/diir"),
    ("likeness/formats",),
    ("likeness/faces",),
    ("likeness/drawing",),
    ("likeness/miniature/world",),
    ("likeness/miniature",),
    ("likeness/training/persona", "likeness/training/magicid"),
    ("likeness/hosts/diffusers",),
    ("likeness/hosts/comfy",),
    ("likeness/hosts/comfy/faces",),
    ("likeness/hosts/comfy/magicface", "likeness/hosts/comfy/miniature", "likeness/hosts/comfy/persona"),
    ("likeness/hosts/comfy/magicid",),
    ("likeness/hosts/comfy/diir",),
    ("nodes",),
    ("lab",),
)
#: packages of others that the methods themselves may use
CORE_MAY_USE = {"torch", "numpy"}

#: folders that hold nothing but others
SHELLS = {"likeness", "likeness/hosts", "likeness/training"}

FILES = sorted(
    file
    for top in ("likeness", "nodes", "lab")
    for file in (ROOT / top).rglob("*.py")
    if file.parent.relative_to(ROOT).as_posix() not in SHELLS
)


def rooms() -> dict[str, tuple[int, str]]:
    """Folder -> its floor and its own name there."""
    return {folder: (floor, folder) for floor, folders in enumerate(FLOORS) for folder in folders}


def room_of(file: Path) -> tuple[int, str]:
    """The floor and folder of a file: the longest folder of :data:`FLOORS` that holds it."""
    inside = file.relative_to(ROOT).parent.as_posix()
    known = rooms()
    while inside not in known:
        inside = inside.rpartition("/")[0]
        assert inside, f"{file.relative_to(ROOT)} lies in no folder of FLOORS"
    return known[inside]


def imports(file: Path, tree: ast.AST | None = None) -> list[tuple[int, str, list[str]]]:
    """``(level, module, names)`` of every import statement, wherever it stands; of the file's, or of a part's alone."""
    found = []
    for node in ast.walk(tree or ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found += [(0, alias.name, []) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found.append((node.level, node.module or "", [alias.name for alias in node.names]))
    return found


def targets(file: Path, tree: ast.AST | None = None) -> set[Path]:
    """Files of the pack that ``file`` (or a part of it) imports from."""
    reached = set()
    for level, module, names in imports(file, tree):
        if level:
            base = file.parents[level - 1].joinpath(*module.split(".") if module else ())
        elif module.split(".")[0] in ("likeness", "lab"):
            base = ROOT.joinpath(*module.split("."))
        else:
            continue
        for name in names or [""]:
            places = (base / f"{name}.py", base / name / "__init__.py", base.with_suffix(".py"), base / "__init__.py")
            reached.add(next(place for place in places if place.is_file()))
    return reached


def allowed(file: Path, target: Path) -> bool:
    floor, folder = room_of(file)
    below, other = room_of(target)
    return below < floor or folder == other or target.name == "__init__.py"


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.relative_to(ROOT).as_posix())
def test_imports_go_down(file: Path) -> None:
    assert [target.relative_to(ROOT).as_posix() for target in targets(file) if not allowed(file, target)] == []


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.relative_to(ROOT).as_posix())
def test_only_host_folders_import_comfyui(file: Path) -> None:
    folder = room_of(file)[1]
    used = {module.split(".")[0] for level, module, _ in imports(file) if not level}
    if folder != "lab":
        assert not used & {"likeness", "lab"}, "imports inside the pack are relative, and none reach the lab"
    if folder != "nodes" and not folder.startswith("likeness/hosts/comfy"):
        assert not used & HOST_MODULES


def test_core_uses_torch_and_the_standard_library_only() -> None:
    for file in (file for file in FILES if room_of(file)[1].startswith("likeness/core")):
        used = {module.split(".")[0] for level, module, _ in imports(file) if not level}
        assert used <= set(sys.stdlib_module_names) | CORE_MAY_USE, file


#: package -> the only folders whose files may import it, wherever the import stands. ComfyUI users install none of
#: diffusers and its kin; skia is theirs to leave out.
ONLY_IN = {
    "diffusers": ("likeness/hosts/diffusers", "lab"),
    "transformers": ("likeness/hosts/diffusers", "likeness/training", "lab"),
    "accelerate": ("likeness/training/magicid", "likeness/hosts/diffusers", "lab"),
    "psutil": ("lab",),
    "tqdm": ("lab",),
    "skia": ("likeness/miniature/world",),
}


@pytest.mark.parametrize("package", ONLY_IN)
def test_headless_packages_stay_where_they_belong(package: str) -> None:
    users = [
        file
        for file in FILES
        if any(module.split(".")[0] == package for level, module, _ in imports(file) if not level)
        and not file.relative_to(ROOT).as_posix().startswith(tuple(f"{folder}/" for folder in ONLY_IN[package]))
    ]
    assert users == []


def at_once(file: Path) -> tuple[set[Path], set[str]]:
    """What importing ``file`` brings at once: files of the pack (and the packages they lie in), packages of others."""
    tree = ast.parse(file.read_text("utf-8"))
    later = {id(n) for f in ast.walk(tree) if isinstance(f, ast.FunctionDef) for n in ast.walk(f) if n is not f}
    found = [n for n in ast.walk(tree) if isinstance(n, ast.Import | ast.ImportFrom) and id(n) not in later]
    top = ast.Module(found, [])
    inside = targets(file, top)
    inside |= {parent / "__init__.py" for target in inside for parent in target.parents if parent.is_relative_to(ROOT)}
    return {f for f in inside if f.is_file()}, {m.split(".")[0] for level, m, _ in imports(file, top) if not level}


def brought(files: list[Path]) -> dict[str, Path]:
    """Packages that importing the files brings, each with a file that asks for it."""
    waiting, seen, found = list(files), set(files), {}
    while waiting:
        file = waiting.pop()
        inside, packages = at_once(file)
        found |= dict.fromkeys(packages - set(found), file)
        waiting += inside - seen
        seen |= inside
    return found


def test_nodes_load_without_skia_and_diffusers() -> None:
    found = brought(sorted((ROOT / "nodes").glob("*.py")))
    assert {"torch", "comfy", "comfy_api"} <= set(found), "the walk reaches what it must"
    assert not set(found) & {"skia", "diffusers", "transformers", "accelerate", "lab"}


def test_the_walk_sees_skia_where_it_is_drawn_with() -> None:
    assert brought([ROOT / "likeness/miniature/world/render.py"])["skia"].parent.name == "world"
    assert "skia" not in brought([ROOT / "likeness/miniature/faces.py"])
    assert "diffusers" in brought([ROOT / "likeness/hosts/diffusers/miniature.py"])


def cycles(graph: dict[Path, set[Path]]) -> list[list[Path]]:
    """Rings of files that import each other: Tarjan's strongly connected components of more than one file."""
    order: dict[Path, int] = {}
    lowest: dict[Path, int] = {}
    stack: list[Path] = []
    found: list[list[Path]] = []

    def visit(file: Path) -> None:
        order[file] = lowest[file] = len(order)
        stack.append(file)
        for target in graph.get(file, ()):
            if target not in order:
                visit(target)
            if target in stack:
                lowest[file] = min(lowest[file], lowest[target])
        if lowest[file] == order[file]:
            ring = [stack.pop()]
            while ring[-1] != file:
                ring.append(stack.pop())
            if len(ring) > 1 or file in graph.get(file, ()):
                found.append(sorted(ring))

    for file in graph:
        if file not in order:
            visit(file)
    return found


def test_no_files_import_each_other() -> None:
    """Wherever the import stands: at the top, in a function, or for type checkers only."""
    graph = {file: targets(file) for file in FILES if file.name != "__init__.py"}
    assert [[file.relative_to(ROOT).as_posix() for file in ring] for ring in cycles(graph)] == []


def test_the_check_sees_a_ring() -> None:
    a, b, c, d = (Path(name) for name in "abcd")
    assert cycles({a: {b}, b: {c}, c: {a, d}, d: set()}) == [[a, b, c]]
    assert cycles({a: {b, c}, b: {d}, c: {d}, d: set()}) == []


def test_the_check_sees_a_forbidden_import(tmp_path: Path) -> None:
    file = tmp_path / "bad.py"
    file.write_text("import comfy.utils\nfrom likeness.core import attention\n")
    assert [module for _, module, _ in imports(file)] == ["comfy.utils", "likeness.core"]
    assert targets(file) == {ROOT / "likeness" / "core" / "attention.py"}
    low, high = ROOT / "likeness/core/attention.py", ROOT / "likeness/hosts/comfy/unet.py"
    assert allowed(high, low) and not allowed(low, high)


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
    weights = [file.stat().st_size for file in (ROOT / "likeness/miniature/weights").glob("*.safetensors")]
    assert weights and all(size <= 15 * 2**20 for size in weights)
    assert sum(weights) <= 40 * 2**20
