"""Fixtures of all tests. ``likeness`` and ``lab`` are imported from the root, ``support`` from this folder."""

from __future__ import annotations

import pytest

#: Its tests start a process each and share nothing.
PROCESSES = "tests/host/test_inprocess.py"


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tell a parallel run (``.ci/run``) what belongs in one process, and have it begin with the longest."""
    if hasattr(config, "workerinput"):
        for item in items:
            if _group(item):
                item.add_marker(pytest.mark.xdist_group(_group(item)))
        items.sort(key=_place)


def _group(item: pytest.Item) -> str:
    """What a test shares: a host's server, else its file; empty where it shares nothing."""
    if "server" in item.fixturenames:
        return f"server of {getattr(item.callspec.params['host'], 'name', 'no host')}"
    file = item.nodeid.partition("::")[0]
    return "" if file == PROCESSES else file


def _place(item: pytest.Item) -> int:
    """Servers first, then the tests with a process of their own, then the short ones."""
    if "server" in item.fixturenames:
        return 0
    return 2 if _group(item) else 1
