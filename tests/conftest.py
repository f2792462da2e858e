"""Options and rules for the whole test tree."""

import os

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--rewrite",
        action="store_true",
        help="write the present output into golden and scenario files; commit only what you understand",
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Lab tests run unless VIRTHA_NO_LAB=1: a lab that can't run must fail, not hide."""
    if os.environ.get("VIRTHA_NO_LAB") != "1":
        return
    skip = pytest.mark.skip(reason="VIRTHA_NO_LAB=1")
    for item in items:
        if "lab" in item.keywords:
            item.add_marker(skip)


@pytest.fixture
def rewrite(request: pytest.FixtureRequest) -> bool:
    return bool(request.config.getoption("--rewrite"))
