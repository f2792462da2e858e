"""Cases and fixtures of the domain XML tests."""

from pathlib import Path

import pytest


@pytest.fixture
def adoptable() -> Path:
    """Directory of domains as virt-install and virt-manager write them."""
    return Path(__file__).parent / "adoptable"
