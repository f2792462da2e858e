"""The MIB that describes our SNMP notifications, as installed with the package."""

from importlib.resources import files


def mib_text() -> str:
    """VIRTHA-MIB, to be given to a network management station."""
    return files("virtha.alerts").joinpath("VIRTHA-MIB.txt").read_text()
