"""Proves that the start gate is in force: by a start that must be refused (rule G3).

A hook that lies in its directory proves nothing: libvirt looks for hooks once, when its daemon
starts, and an older libvirt knows no ``qemu.d``. So a diskless domain that the gate's records call
managed is started, paused and without a grant. Refused by our hook: in force.
"""

import structlog

from virtha.agent.commands import is_gone
from virtha.agent.gate import PROOF_VM_ID, gate_installed
from virtha.agent.paths import AgentPaths
from virtha.domainxml.elements import NAMESPACE
from virtha.model.value import Value
from virtha.ports.hypervisor import (
    DomainCatalog,
    DomainControl,
    DomainMissing,
    GateRefused,
    HypervisorError,
)

PROOF_NAME = "virtha-gate-proof"
_log = structlog.get_logger(__name__)


class GateProof(Value, frozen=True, kw_only=True):
    in_force: bool
    detail: str = ""


class GateProver:
    def __init__(self, control: DomainControl, catalog: DomainCatalog, paths: AgentPaths) -> None:
        self._control = control
        self._catalog = catalog
        self._paths = paths

    async def prove(self, *, domain_type: str, architecture: str) -> GateProof | None:
        """None: libvirt can't be asked now, so what was known before still is all that is known."""
        wrong = gate_installed(self._paths)
        if wrong is not None:
            return GateProof(in_force=False, detail=f"{wrong}; run 'virtha agent install-gate'")
        try:
            await self._catalog.define(_proof_xml(domain_type, architecture))
            return await self._try()
        except HypervisorError as error:
            _log.warning("the gate can't be proved now", error=str(error))
            return None
        finally:
            await self._clean_up()

    async def _try(self) -> GateProof:
        try:
            await self._control.start_paused(PROOF_VM_ID)
        except GateRefused as refusal:
            if "gate.refused." in str(refusal):
                return GateProof(in_force=True)
            return GateProof(in_force=False, detail=f"another hook refused the start: {refusal}")
        return GateProof(
            in_force=False, detail="libvirtd has not loaded the hook; restart libvirtd (VMs run on)"
        )

    async def _clean_up(self) -> None:
        """A left-over is harmless: it has no disk, never runs, and the next proof cleans up."""
        try:
            report = await self._catalog.domain(PROOF_VM_ID)
            if not is_gone(report):
                await self._control.destroy(PROOF_VM_ID)
            await self._catalog.undefine(PROOF_VM_ID)
        except DomainMissing:
            return
        except HypervisorError as error:
            _log.warning("the gate's proof domain stays behind", error=str(error))


def _proof_xml(domain_type: str, architecture: str) -> str:
    return (
        f"<domain type='{domain_type}'><name>{PROOF_NAME}</name><uuid>{PROOF_VM_ID}</uuid>"
        f"<metadata><virtha:vm xmlns:virtha='{NAMESPACE}' id='{PROOF_VM_ID}'/></metadata>"
        "<memory unit='MiB'>16</memory><vcpu>1</vcpu>"
        f"<os><type arch='{architecture}'>hvm</type></os>"
        "<on_crash>destroy</on_crash></domain>"
    )
