"""Fixtures of the contract suites: one libvirtd for the whole run, away from the machine's own."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from own_ceph import OwnCeph
from own_libvirtd import OwnLibvirtd


@pytest.fixture(scope="session")
def own_libvirtd() -> Iterator[OwnLibvirtd]:
    # A short path: a Unix socket's has at most 107 bytes, pytest's own directories are longer.
    with tempfile.TemporaryDirectory(prefix="vt-", ignore_cleanup_errors=True) as directory:
        libvirtd = OwnLibvirtd(Path(directory))
        libvirtd.start()
        try:
            yield libvirtd
        finally:
            libvirtd.stop()


@pytest.fixture(scope="session")
def own_ceph() -> Iterator[OwnCeph]:
    with tempfile.TemporaryDirectory(prefix="vt-", ignore_cleanup_errors=True) as directory:
        ceph = OwnCeph(Path(directory))
        ceph.start()
        try:
            yield ceph
        finally:
            ceph.stop()
