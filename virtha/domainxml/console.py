"""Where a running domain's serial port and VNC server are, out of its live XML."""

from virtha.domainxml.xmltree import attribute, elements, first, parse_domain, root_of
from virtha.model.value import Value


class VncAddress(Value, frozen=True, kw_only=True):
    """``path``: of a Unix socket; or ``host`` and ``port``, as adopted domains have."""

    path: str = ""
    host: str = ""
    port: int = 0


def serial_terminal(live_xml: str) -> str | None:
    """The pseudoterminal of the first serial port; None: it has none, or one of another kind."""
    devices = first(root_of(parse_domain(live_xml)), "devices")
    if devices is None:
        return None
    for port in elements(devices, "serial") or elements(devices, "console"):
        path = attribute(first(port, "source"), "path")
        if port.getAttribute("type") == "pty" and path.startswith("/dev/pts/"):
            return path
        return None
    return None


def vnc_address(live_xml: str) -> VncAddress | None:
    """None: it has no VNC server, or one that listens nowhere."""
    devices = first(root_of(parse_domain(live_xml)), "devices")
    for graphics in elements(devices, "graphics") if devices is not None else []:
        if graphics.getAttribute("type") != "vnc":
            continue
        listen = first(graphics, "listen")
        path = attribute(listen, "socket") or graphics.getAttribute("socket")
        if path:
            return VncAddress(path=path)
        port = graphics.getAttribute("port")
        if port.isdecimal() and 0 < int(port) < 65_536:
            host = attribute(listen, "address") or graphics.getAttribute("listen")
            # Of one that listens everywhere, this host's own end.
            return VncAddress(
                host="127.0.0.1" if host in ("", "0.0.0.0", "::") else host,  # noqa: S104 - compared with
                port=int(port),
            )
    return None
