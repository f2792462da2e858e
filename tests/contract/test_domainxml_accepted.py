"""Real libvirt takes every domain that virtha makes, and every one that it has patched."""

import asyncio
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
from own_libvirtd import OwnLibvirtd

from virtha.domainxml.adopt import managed_vm_id, patch_domain, read_domain, unpatch_domain
from virtha.domainxml.build import build_domain
from virtha.domainxml.host_defaults import HostDefaults, Rng
from virtha.drivers.libvirt_driver import LibvirtHost
from virtha.model.ids import StorageDomainId, VmId
from virtha.model.watchdog import parse_watchdog

UNIT = Path(__file__).parents[1] / "unit" / "domainxml"


def _cases() -> ModuleType:
    spec = importlib.util.spec_from_file_location("domain_cases", UNIT / "domain_cases.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules.setdefault("domain_cases", module)
    spec.loader.exec_module(module)
    return module


CASES = _cases().CASES


async def connected(libvirtd: OwnLibvirtd) -> LibvirtHost:
    up = asyncio.Event()
    host = LibvirtHost(libvirtd.uri, domain_type="qemu")
    host.subscribe(lambda _event: None, lambda _connected: up.set())
    await host.start()
    await asyncio.wait_for(up.wait(), 60)
    return host


@pytest.mark.lab
@pytest.mark.req("W2", "A3", "A4", "A6")
def test_libvirt_defines_each_golden(own_libvirtd: OwnLibvirtd) -> None:
    async def run() -> None:
        host = await connected(own_libvirtd)
        undo: list[VmId] = []
        try:
            for name, (vm, defaults) in CASES.items():
                if vm.architecture != "x86_64" or defaults.domain_type == "kvm":
                    # No QEMU for s390x here, and KVM may be missing: their schema is checked apart.
                    continue
                await host.define(build_domain(vm, defaults))
                undo.append(vm.id)
                defined = await host.xml(VmId(vm.id))
                assert managed_vm_id(defined) == vm.id, name
                reading = read_domain(defined, defaults)
                assert reading.vm is not None, name
                assert reading.vm.machine is vm.machine
                # Reading back what libvirt made of it needs no change: nothing was dropped or renamed.
                assert patch_domain(defined, vm, defaults).changes == (), name
                await host.undefine(vm.id)
        finally:
            for vm_id in undo:
                await host.undefine(vm_id)
            await host.close()

    asyncio.run(asyncio.wait_for(run(), 200))


@pytest.mark.lab
@pytest.mark.req("A8")
@pytest.mark.parametrize("name", ["old-pc", "tight"])
def test_libvirt_takes_adopted_and_returned_domains(own_libvirtd: OwnLibvirtd, name: str) -> None:
    async def run() -> None:
        host = await connected(own_libvirtd)
        defaults = HostDefaults(
            domain_type="qemu", rng=Rng(), storage_paths={StorageDomainId("s"): "/srv/store"}
        )
        source = (UNIT / "adoptable" / f"{name}.xml").read_text()
        found = read_domain(source, defaults).vm
        assert found is not None
        try:
            await host.define(source)
            original = await host.xml(found.id)
            wanted = found.__class__(
                **{field: getattr(found, field) for field in found.__struct_fields__}
                | {"watchdog": parse_watchdog("i6300esb:reset")}
            )
            patched = patch_domain(original, wanted, defaults)
            assert patched.changes
            await host.define(patched.xml)
            live = await host.xml(found.id)
            assert patch_domain(live, wanted, defaults).changes == ()
            returned = unpatch_domain(live, original)
            await host.define(returned.xml)
            final = await host.xml(found.id)
            assert managed_vm_id(final) is None
            # Back to what libvirt had, but for controllers that it keeps once it has made them.
            assert read_domain(final, defaults).vm == read_domain(original, defaults).vm
            assert ("<panic" in final) == ("<panic" in original)
            assert ("guest_agent" in final) == ("guest_agent" in original)
            assert ("<rng" in final) == ("<rng" in original)
        finally:
            await host.undefine(found.id)
            await host.close()

    asyncio.run(asyncio.wait_for(run(), 200))
