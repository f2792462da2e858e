"""Keys are made once for all tests of the link."""

import pytest
from link_rig import INSTALLATION_OTHER, Pki


@pytest.fixture(scope="session")
def pki() -> Pki:
    return Pki()


@pytest.fixture(scope="session")
def other_pki() -> Pki:
    return Pki(INSTALLATION_OTHER)
