"""Starts and ends that were ordered and whose answers the engine awaits."""

from collections import defaultdict

from virtha.engine.ending import EndPaused
from virtha.engine.events import StartCommand
from virtha.model.ids import OperationId, VmId

KEPT_OF_A_VM = 16
"""Ends that are not answered are ordered again each 30 s, for days where nobody looks: what came of one that so many have
followed decides nothing any more."""


class BegunOrders:
    """Until it is told how they ended, or their VM is gone; of each VM the newest ``KEPT_OF_A_VM``."""

    def __init__(self) -> None:
        self._commands: dict[OperationId, StartCommand | EndPaused] = {}
        self._of_vm: defaultdict[VmId, dict[OperationId, None]] = defaultdict(dict)
        """In the order in which they were first sent."""

    def __len__(self) -> int:
        return len(self._commands)

    def sent(self, operation_id: OperationId, command: StartCommand | EndPaused) -> None:
        """Also what is sent again."""
        self._commands[operation_id] = command
        of_vm = self._of_vm[command.vm_id]
        of_vm[operation_id] = None
        if len(of_vm) > KEPT_OF_A_VM:
            self.ended(next(iter(of_vm)))

    def get(self, operation_id: OperationId) -> StartCommand | EndPaused | None:
        return self._commands.get(operation_id)

    def ended(self, operation_id: OperationId) -> None:
        """Told again, it would say the same."""
        command = self._commands.pop(operation_id, None)
        if command is not None:
            of_vm = self._of_vm[command.vm_id]
            del of_vm[operation_id]
            if not of_vm:
                del self._of_vm[command.vm_id]

    def vm_gone(self, vm_id: VmId) -> None:
        for operation_id in self._of_vm.pop(vm_id, ()):
            del self._commands[operation_id]
