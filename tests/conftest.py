"""Options and rules for the whole test tree."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from empty_database import lay_empty_database
from hypothesis import HealthCheck, settings
from left_mounts import unmount_left

# How long an example takes says how busy the machine is; the same commit is tested with the same examples.
# Others are looked for with `--hypothesis-profile=search`, in `make verify`.
settings.register_profile(
    "search", deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True
)
settings.register_profile("same", settings.get_profile("search"), derandomize=True, database=None)
settings.load_profile("same")

SHARED_SERVERS = {"story", "server", "daemon", "own_libvirtd", "initialised"}
"""Fixtures of a module or of the whole run that start programs."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--rewrite",
        action="store_true",
        help="write the present output into golden and scenario files; commit only what you understand",
    )


def pytest_sessionstart(session: pytest.Session) -> None:
    """Before pytest looks for directories of former runs to delete."""
    if os.geteuid() == 0 and not hasattr(session.config, "workerinput"):
        unmount_left()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Lab tests run unless VIRTHA_NO_LAB=1: a lab that can't run must fail, not hide.

    Tests of a module that share a server stay in one worker (`--dist loadgroup`): another would start its own.
    """
    for item in items if config.pluginmanager.hasplugin("xdist") else ():
        if not SHARED_SERVERS.isdisjoint(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.xdist_group(str(item.path.relative_to(config.rootpath))))
    if os.environ.get("VIRTHA_NO_LAB") != "1":
        return
    skip = pytest.mark.skip(reason="VIRTHA_NO_LAB=1")
    for item in items:
        if "lab" in item.keywords:
            item.add_marker(skip)


@pytest.fixture(scope="session")
def fresh_database() -> Callable[[Path], None]:
    """Lays an empty, migrated `virtha.db` into a directory."""
    return lay_empty_database


@pytest.fixture
def rewrite(request: pytest.FixtureRequest) -> bool:
    return bool(request.config.getoption("--rewrite"))
