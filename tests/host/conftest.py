"""Host tests: the pack on real ComfyUI installations (``COMFYUI_PATH``, ``COMFYUI_PYTHON``).

In the test run itself nothing here imports ComfyUI: the tests start its server, or run the files of ``inprocess/``
with its Python. In that second process (``LIKENESS_TEST_HOST`` is set) this file makes ``import comfy`` work.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterator
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from support.comfy.inprocess import HOST_VARIABLE

from lab.workflows import discovery
from lab.workflows.server import Server

_inside = os.environ.get(HOST_VARIABLE)


#: The name under which the pack is loaded inside ComfyUI's Python; its declarations are ``likeness_pack.nodes``.
PACK = "likeness_pack"


class _OneLikeness(MetaPathFinder, Loader):
    """Lets ``likeness`` name the loaded pack's inner package, so that no class exists twice."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        return ModuleSpec(name, self) if name.partition(".")[0] == "likeness" else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        module = importlib.import_module(f"{PACK}.{spec.name}")
        self._own = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self._own


def _prepare_imports(host: str) -> None:
    """Put ComfyUI first on the path, have it use the CPU as ``main.py --cpu`` does, and load the pack as it does."""
    sys.path.insert(0, host)
    import comfy.cli_args  # the host's own argument table; its defaults hold when it is not a program

    comfy.cli_args.args.cpu = True
    root = discovery.ROOT
    spec = spec_from_file_location(PACK, root / "__init__.py", submodule_search_locations=[str(root)])
    sys.modules[PACK] = module_from_spec(spec)
    spec.loader.exec_module(sys.modules[PACK])
    sys.meta_path.insert(0, _OneLikeness())


if _inside:
    _prepare_imports(_inside)
    _hosts: list[discovery.Host] = []
else:
    collect_ignore = ["inprocess"]
    _hosts = discovery.hosts()


@pytest.fixture(scope="session", params=_hosts or [None], ids=lambda host: host.name if host else "no-host")
def host(request: pytest.FixtureRequest) -> discovery.Host:
    """Each ComfyUI in turn; skipped when there is none."""
    if request.param is None:
        pytest.skip(discovery.why_none())
    return request.param


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say it aloud when the host tests could not run."""
    if not _inside and not _hosts:
        terminalreporter.write_line(f"HOST TESTS SKIPPED: {discovery.why_none()}", yellow=True)


@pytest.fixture(scope="session")
def pack_root() -> Path:
    """The repository."""
    return discovery.ROOT


@pytest.fixture(scope="session")
def server(host: discovery.Host, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The host's real server with the pack installed, one for all tests of that host."""
    base = tmp_path_factory.mktemp(host.name)
    with Server(host, base) as running:
        yield running


@pytest.fixture(scope="session")
def object_info(server: Server) -> dict[str, Any]:
    """What the server tells the front end about every node."""
    return server.get("/object_info")
