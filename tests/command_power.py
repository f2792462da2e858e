"""Settings of a power device that a program switches; which one, nobody runs it where devices are played."""

from virtha.control.power_views import PowerPut
from virtha.model.power_settings import PowerDriver, PowerSettings


def command_power(address: str, **more: object) -> PowerPut:
    """``more``: fields of the settings, also in place of these."""
    given = {
        "driver": PowerDriver.COMMAND,
        "executable": "/bin/false",
        "syntax": "$IPMI_EXEC $IPMI_ACTION $IPMI_HOST",
        "stop": "stop",
        "status": "status",
        "address": address,
    }
    return PowerPut(settings=PowerSettings(**{**given, **more}))
