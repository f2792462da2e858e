"""Whom a start shuts out of its images on Ceph, and whom it never does (safety.md, P3)."""

import pytest
from msgspec.structs import replace

from virtha.agent.image_holders import ImageLook, Opened, shut_out, to_shut_out
from virtha.agent.storage import ClaimRefused, VmHeader
from virtha.model.errors import Failed, InvalidInput
from virtha.model.ids import BootId, HostId, Incarnation, InstallationId, VmId

pytestmark = [pytest.mark.req("F3"), pytest.mark.req("F9")]

ROOT = ImageLook(name="vms/root", prefix="rbd_data.1", exclusive=True, watchers=(), owners=())
DATA = replace(ROOT, name="vms/data", prefix="rbd_data.2")
OLD, OLDER, ALIEN = "10.0.0.1:0/11", "10.0.0.1:0/12", "10.0.0.9:0/99"
BOTH = ("rbd_data.1", "rbd_data.2")
CLAIM = VmHeader(
    installation_id=InstallationId("i"),
    vm_id=VmId("v"),
    incarnation=Incarnation(7),
    host_id=HostId("h2"),
    boot=BootId("b"),
)


def test_with_proof_whoever_watches_and_whoever_owns_the_lock_is_shut_out() -> None:
    looks = [replace(ROOT, watchers=(OLD,), owners=(OLDER,)), replace(DATA, watchers=(OLD,))]
    assert to_shut_out(looks, known=BOTH, proven=True) == (OLD, OLDER)


def test_a_lock_whose_owner_does_not_watch_is_taken_from_him() -> None:
    assert to_shut_out([replace(ROOT, owners=(OLDER,))], known=BOTH, proven=True) == (OLDER,)


def test_without_proof_nobody_is_shut_out() -> None:
    with pytest.raises(Opened, match="a start without proof shuts out nobody") as refused:
        to_shut_out([replace(ROOT, watchers=(OLD,))], known=BOTH, proven=False)
    assert refused.value.code == "problem.disk.in_use"
    assert "rbd status vms/root" in refused.value.fix
    assert to_shut_out([replace(ROOT, owners=(OLD,))], known=BOTH, proven=False) == ()


def test_of_an_image_that_the_vm_never_ran_with_nobody_is_shut_out() -> None:
    """It ran with another one of the same pool."""
    looks = [replace(ROOT, watchers=(OLD,)), replace(DATA, watchers=(ALIEN,))]
    with pytest.raises(
        Opened, match=r"vms/data is open at 10\.0\.0\.9:0/99, and this VM never ran"
    ):
        to_shut_out(looks, known=("rbd_data.1",), proven=True)
    with pytest.raises(Opened, match="never ran"):
        to_shut_out([replace(DATA, owners=(ALIEN,))], known=("rbd_data.1",), proven=True)
    assert to_shut_out([ROOT, DATA], known=(), proven=True) == ()


def test_an_adopted_vm_ran_with_its_images_before() -> None:
    assert to_shut_out([replace(ROOT, watchers=(OLD,))], known=None, proven=True) == (OLD,)


@pytest.mark.parametrize("proven", [True, False])
def test_an_image_without_lock_and_an_owner_without_address_start_nothing(proven: bool) -> None:
    with pytest.raises(InvalidInput, match="lacks the feature exclusive-lock") as refused:
        to_shut_out([replace(ROOT, exclusive=False)], known=BOTH, proven=proven)
    assert refused.value.field == "disk.path"
    with pytest.raises(Failed, match="can't be told"):
        to_shut_out([replace(ROOT, owners=("",))], known=BOTH, proven=True)


class Pool:
    """What happens to it, in order; ``claim`` changes when it is looked at, where ``later`` says so."""

    def __init__(self, claim: VmHeader | None, later: VmHeader | None = None) -> None:
        self.claim = claim
        self.later = later
        self.steps: list[str] = []

    def look(self) -> tuple[str, ...]:
        self.steps.append("look")
        if self.later is not None:
            # A frozen agent: by the time it goes on another host has taken the VM over, and its QEMU is not among these.
            self.claim = self.later
        return (OLD, OLDER)

    def read_claim(self) -> VmHeader | None:
        self.steps.append("claim")
        return self.claim

    def shut_out(self) -> None:
        shut_out(CLAIM, look=self.look, read_claim=self.read_claim, block=self.steps.append)


def test_the_claim_is_read_after_the_look_and_before_anybody_is_shut_out() -> None:
    pool = Pool(CLAIM)
    pool.shut_out()
    assert pool.steps == ["look", "claim", OLD, OLDER]


@pytest.mark.parametrize(
    "newer",
    [
        replace(CLAIM, incarnation=Incarnation(8), host_id=HostId("h3")),
        replace(CLAIM, host_id=HostId("h3")),
        replace(CLAIM, boot=BootId("b2")),
    ],
    ids=["later", "another host", "another boot"],
)
def test_whose_claim_is_not_on_the_storage_any_more_shuts_out_nobody(newer: VmHeader) -> None:
    pool = Pool(CLAIM, later=newer)
    with pytest.raises(ClaimRefused) as refused:
        pool.shut_out()
    assert refused.value.present == newer
    assert pool.steps == ["look", "claim"]


def test_a_claim_that_is_gone_shuts_out_nobody() -> None:
    pool = Pool(None)
    with pytest.raises(Failed, match="is gone"):
        pool.shut_out()
    assert pool.steps == ["look", "claim"]
