"""The server remembers what it ordered until it is answered, and not for ever."""

from virtha.engine.ending import EndPaused
from virtha.engine.records import OrderId
from virtha.model.ids import BootId, HostId, Incarnation, OperationId, VmId
from virtha.server.begun_orders import KEPT_OF_A_VM, BegunOrders


def end_of(vm: str) -> EndPaused:
    return EndPaused(
        order_id=OrderId("order"),
        vm_id=VmId(vm),
        host_id=HostId("h1"),
        boot=BootId("h1-boot1"),
        incarnation=Incarnation(1),
    )


def operation(number: int) -> OperationId:
    return OperationId(f"operation-{number}")


def test_an_order_that_is_never_answered_leaves_no_more_than_its_newest_tries() -> None:
    begun = BegunOrders()
    other = OperationId("other")
    begun.sent(other, end_of("web2"))
    for number in range(1_000):
        begun.sent(operation(number), end_of("web1"))
    assert len(begun) == KEPT_OF_A_VM + 1
    assert begun.get(operation(999)) == end_of("web1")
    assert begun.get(operation(1_000 - KEPT_OF_A_VM)) == end_of("web1")
    assert begun.get(operation(999 - KEPT_OF_A_VM)) is None
    assert begun.get(other) == end_of("web2")


def test_what_is_sent_again_is_one() -> None:
    begun = BegunOrders()
    begun.sent(operation(0), end_of("web1"))
    for _ in range(2 * KEPT_OF_A_VM):
        begun.sent(operation(1), end_of("web1"))
    assert len(begun) == 2 and begun.get(operation(0)) is not None


def test_what_ended_and_what_is_gone_leaves_nothing() -> None:
    begun = BegunOrders()
    for number in range(4):
        begun.sent(operation(number), end_of(f"web{number % 2}"))
    begun.ended(operation(0))
    begun.ended(operation(0))
    assert begun.get(operation(0)) is None and begun.get(operation(2)) is not None
    begun.vm_gone(VmId("web1"))
    begun.vm_gone(VmId("web1"))
    assert len(begun) == 1
    begun.ended(operation(2))
    assert len(begun) == 0
    begun.sent(operation(5), end_of("web0"))
    assert len(begun) == 1
