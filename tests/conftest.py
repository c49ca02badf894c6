"""Fixtures of all tests. ``likeness`` and ``lab`` are imported from the root, ``support`` from this folder."""

from __future__ import annotations

from typing import Any

import pytest

from lab.workflows.discovery import host_paths

#: Its tests start a process each and share nothing.
PROCESSES = "tests/host/test_inprocess.py"
#: Longest first: of names that begin alike the whole one is found.
HOSTS = sorted((path.name for path in host_paths()), key=len, reverse=True)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Tell a parallel run (``.ci/run``) what belongs in one process.

    By xdist's own hook and not by its mark ``xdist_group``, of which xdist 3.8 makes nothing beside pytest 9.2.
    """
    from xdist.scheduler import LoadScopeScheduling

    class ByGroup(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return group_of(nodeid)

    return ByGroup(config, log)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Have a parallel run begin with the longest: a host's server, then tests with a process of their own."""
    if hasattr(config, "workerinput"):
        items.sort(key=lambda item: (group_of(item.nodeid) not in HOSTS, not item.nodeid.startswith(PROCESSES)))


def group_of(nodeid: str) -> str:
    """What a test shares: a host, whose server and front end are started once; else its file, or nothing."""
    file = nodeid.partition("::")[0]
    if file == PROCESSES:
        return nodeid
    shared = (name for name in HOSTS if f"[{name}]" in nodeid or f"[{name}-" in nodeid)
    return next(shared, file) if file.startswith("tests/host/") else file
