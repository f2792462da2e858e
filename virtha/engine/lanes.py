"""Which commands of one step go out first."""

from virtha.engine.cutting import StorageFence
from virtha.engine.events import (
    Command,
    EndWaiver,
    GiveWaiver,
    MigrateCommand,
    OrderPower,
    Poison,
    ReadPower,
    StartCommand,
)


def lane_of(command: Command) -> int:
    """The lowest first: fencing, then what ends or settles something, then starts, then moves."""
    match command:
        case OrderPower() | ReadPower() | StorageFence() | Poison() | GiveWaiver() | EndWaiver():
            return 0
        case StartCommand():
            return 2
        case MigrateCommand():
            return 3
        case _:
            return 1
