"""What the look at a paused VM's storage says where there is nothing that it could look at."""

from pathlib import Path

import pytest

from virtha.agent.disk_proof import _prove
from virtha.agent.files import Files
from virtha.model.host import CephPool, StorageDomain
from virtha.model.ids import ClusterId, HostId, InstallationId, StorageDomainId


@pytest.mark.req("S6")
def test_a_ceph_pool_is_never_taken_for_one_that_answers(tmp_path: Path) -> None:
    """Nor is anything asked of it, which could hang, or of a directory of that name."""
    pool = StorageDomain(
        id=StorageDomainId("ds1"),
        name="fast",
        cluster_id=ClusterId("c1"),
        kind="ceph-rbd",
        path=str(tmp_path),
        ceph=CephPool(monitors=("10.0.0.1",), pool="vms"),
    )
    why = _prove(pool, (), InstallationId("ours"), HostId("h1"), Files(), False)
    assert why is not None and "fast" in why and "virtha vm resume" in why
    assert list(tmp_path.iterdir()) == []
