"""A BMC by Redfish (DSP0266), over HTTPS with basic authentication: no session is left behind, and whatever is under way
ends with its connection at the deadline. Redirects are not followed: the password is for this address alone.
"""

import asyncio
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import quote

import httpx
import msgspec

from virtha.drivers.power_words import NO_ANSWER, PowerWords, code_of_error
from virtha.model.evidence import PowerState
from virtha.model.machine_identity import uuid_digits
from virtha.model.power import PowerAction
from virtha.model.power_settings import CertificateCheck, MachineIdentity, PowerSettings
from virtha.ports.power import MayGo, PowerOutcome, PowerReading

PORT = 443
ANSWER_BYTES_MAX = 2_000_000
_ROOT = "/redfish/v1/"
_STATES = {
    "On": PowerState.ON,
    "PoweringOn": PowerState.ON,
    "PoweringOff": PowerState.ON,
    "Paused": PowerState.ON,
    "Off": PowerState.OFF,
}
"""Whatever still has power is on (DSP0268, PowerState)."""
_RESETS = {PowerAction.OFF: ("ForceOff",), PowerAction.ON: ("On", "ForceOn")}
_WANTED = {PowerAction.OFF: PowerState.OFF, PowerAction.ON: PowerState.ON}


class _Wrong(Exception):
    def __init__(self, code: str, detail: str = "") -> None:
        super().__init__(detail)
        self.code = code
        self.detail = detail


class _TooLate(Exception):
    pass


class RedfishPower:
    """Implements ``PowerDevice``. The connection is kept between attempts."""

    def __init__(self, settings: PowerSettings, secrets: Mapping[str, str]) -> None:
        self._settings = settings
        self._password = secrets.get("password", "")
        self._words = PowerWords(secrets, settings.user)
        self._client: httpx.AsyncClient | None = None
        self._system: str | None = None
        self._sent = False
        """What changes something went out in this attempt."""

    async def status(self, *, deadline_ms: int) -> PowerReading:
        try:
            async with self._attempt(deadline_ms):
                system = await self._read_system()
        except _Wrong as wrong:
            return self._words.unread(wrong.code, wrong.detail)
        told = str(system.get("PowerState"))
        identity = _identity(system)
        state = _STATES.get(told)
        if state is None:
            return self._words.unread("power.status_unreadable", f"PowerState: {told}", identity)
        return self._words.read(state, identity, f"PowerState: {told}")

    async def test(self, *, deadline_ms: int) -> PowerReading:
        return await self.status(deadline_ms=deadline_ms)

    async def order(self, action: PowerAction, *, deadline_ms: int, may_go: MayGo) -> PowerOutcome:
        try:
            async with self._attempt(deadline_ms):
                system = await self._read_system()
                if action is PowerAction.BLINK:
                    await self._blink(system, may_go)
                else:
                    await self._reset(system, action, may_go)
        except _TooLate:
            return self._words.too_late()
        except _Wrong as wrong:
            return self._words.failed(wrong.code, wrong.detail, sent=self._sent)
        return self._words.accepted()

    async def close(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            await client.aclose()

    @asynccontextmanager
    async def _attempt(self, deadline_ms: int) -> AsyncIterator[None]:
        """Raises _Wrong, whatever goes wrong on the way."""
        self._sent = False
        try:
            async with asyncio.timeout(deadline_ms / 1_000):
                yield
        except TimeoutError:
            await self.close()
            raise _Wrong(NO_ANSWER, f"nothing within {deadline_ms / 1_000:g} s") from None
        except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError) as error:
            await self.close()
            code, detail = code_of_error(error)
            if code == "power.not_its_protocol" and isinstance(error, httpx.ReadError):
                code = "power.connection_lost"
            if isinstance(error, httpx.RemoteProtocolError) and "disconnected" in str(error):
                code = "power.connection_lost"
            raise _Wrong(code, detail) from None
        except BaseException:
            await self.close()
            raise

    async def _reset(self, system: dict[str, Any], action: PowerAction, may_go: MayGo) -> None:
        offered = _at(system, "Actions", "#ComputerSystem.Reset")
        target = str(offered.get("target") or f"{self._system}/Actions/ComputerSystem.Reset")
        allowed = offered.get("ResetType@Redfish.AllowableValues")
        kinds = [one for one in _RESETS[action] if not isinstance(allowed, list) or one in allowed]
        if not kinds:
            raise _Wrong("power.unsupported", f"it allows {allowed}")
        if not may_go():
            raise _TooLate
        try:
            await self._ask("POST", _own_path(target), {"ResetType": kinds[0]})
        except _Wrong as wrong:
            if wrong.code not in ("power.failed", "power.unsupported"):
                raise
            # Several BMCs refuse to switch off what is off. The reading that counts is the engine's own.
            again = await self._read_system()
            if _STATES.get(str(again.get("PowerState"))) is not _WANTED[action]:
                raise

    async def _blink(self, system: dict[str, Any], may_go: MayGo) -> None:
        if "LocationIndicatorActive" in system:
            change: dict[str, object] = {"LocationIndicatorActive": True}
        elif "IndicatorLED" in system:
            change = {"IndicatorLED": "Blinking"}
        else:
            raise _Wrong("power.unsupported", "this system has no identify light")
        if not may_go():
            raise _TooLate
        await self._ask("PATCH", self._system or "", change, etag=system.get("@odata.etag"))

    async def _read_system(self) -> dict[str, Any]:
        if self._system is None:
            self._system = await self._find_system()
        try:
            return await self._ask("GET", self._system)
        except _Wrong:
            self._system = None
            raise

    async def _find_system(self) -> str:
        root = await self._ask("GET", _ROOT)
        collection = _at(root, "Systems").get("@odata.id")
        if not isinstance(collection, str):
            raise _Wrong("power.not_its_protocol", f"there are no Systems at {_ROOT}")
        if self._settings.plug:
            return f"{_own_path(collection).rstrip('/')}/{quote(self._settings.plug, safe='')}"
        listed = await self._ask("GET", _own_path(collection))
        members = listed.get("Members")
        paths = [
            str(one["@odata.id"])
            for one in (members if isinstance(members, list) else [])
            if isinstance(one, dict) and "@odata.id" in one
        ]
        if len(paths) != 1:
            names = ", ".join(path.rsplit("/", 1)[-1] for path in paths[:10])
            raise _Wrong(
                "power.unusable_settings",
                f"plug: it serves {len(paths)} systems; set plug to one of {names}"
                if paths
                else "it serves no system",
            )
        return _own_path(paths[0])

    async def _ask(
        self, method: str, path: str, body: dict[str, object] | None = None, etag: object = None
    ) -> dict[str, Any]:
        client = await self._connected()
        headers = {"If-Match": etag} if isinstance(etag, str) else {}
        request = client.build_request(method, path, json=body, headers=headers)
        self._sent = self._sent or method != "GET"
        answer = await client.send(request, stream=True)
        try:
            content = await _limited(answer)
        finally:
            await answer.aclose()
        told = _json(content)
        if answer.status_code // 100 != 2:
            raise _Wrong(_refusal(answer.status_code, path), _complaint(answer, told))
        if told is None:
            if method == "GET":
                raise _Wrong("power.not_its_protocol", "what it answered is no JSON")
            return {}
        return told

    async def _connected(self) -> httpx.AsyncClient:
        if self._client is None:
            settings = self._settings
            address = settings.address or ""
            host = f"[{address}]" if ":" in address else address
            try:
                context = await asyncio.to_thread(_trust, settings)
            except ssl.SSLError as error:
                raise _Wrong("power.unusable_settings", f"authority_pem: {error}") from None
            self._client = httpx.AsyncClient(
                base_url=f"https://{host}:{settings.port or PORT}",
                auth=httpx.BasicAuth(settings.user or "", self._password),
                verify=context,
                timeout=httpx.Timeout(None),  # the attempt's deadline holds for all of it
                trust_env=False,
                follow_redirects=False,
                headers={
                    "Accept": "application/json",
                    "Accept-Encoding": "identity",
                    "OData-Version": "4.0",
                },
            )
        return self._client


def _trust(settings: PowerSettings) -> ssl.SSLContext:
    """In a thread: reading the system's authorities takes tens of milliseconds."""
    check = settings.certificate or CertificateCheck.FULL
    context = ssl.create_default_context(cadata=settings.authority_pem or None)
    # So that a device's own, self-signed certificate can be given as the authority.
    context.verify_flags |= ssl.VerifyFlags.VERIFY_X509_PARTIAL_CHAIN
    if check is not CertificateCheck.FULL:
        context.check_hostname = False
    if check is CertificateCheck.NONE:
        context.verify_mode = ssl.CERT_NONE
    return context


async def _limited(answer: httpx.Response) -> bytes:
    """As it came, undone from no compression: a small answer may unpack to gigabytes."""
    content = bytearray()
    async for part in answer.aiter_raw():
        content += part
        if len(content) > ANSWER_BYTES_MAX:
            raise _Wrong("power.not_its_protocol", "its answer has no end")
    return bytes(content)


def _json(content: bytes) -> dict[str, Any] | None:
    try:
        told = msgspec.json.decode(content)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return told if isinstance(told, dict) else None


def _own_path(path: str) -> str:
    """Raises _Wrong: a device may not lead us, and the password, elsewhere."""
    if not path.startswith("/") or path.startswith("//"):
        raise _Wrong("power.not_its_protocol", "it leads to another address")
    return path


def _refusal(status: int, path: str) -> str:
    if 300 <= status < 400:
        return "power.not_its_protocol"
    if status == 401:
        return "power.sign_in_refused"
    if status == 403:
        return "power.not_permitted"
    if status == 404:
        return "power.not_its_protocol" if path == _ROOT else "power.unusable_settings"
    if status in (405, 501):
        return "power.unsupported"
    return "power.failed"


def _complaint(answer: httpx.Response, told: dict[str, Any] | None) -> str:
    """With the extended error (DSP0266, section 8.6), if there is one."""
    line = f"{answer.request.method} {answer.request.url.path}: {answer.status_code}"
    error = _at(told or {}, "error")
    details = error.get("@Message.ExtendedInfo")
    words = [error.get("message")]
    if isinstance(details, list):
        words = [one.get("Message") for one in details if isinstance(one, dict)] or words
    return "; ".join([line, *(str(one) for one in words if one)])


def _at(value: dict[str, Any], *names: str) -> dict[str, Any]:
    """An object inside; an empty one where there is none."""
    found: Any = value
    for name in names:
        found = found.get(name) if isinstance(found, dict) else None
    return found if isinstance(found, dict) else {}


def _identity(system: dict[str, Any]) -> MachineIdentity:
    def text(name: str) -> str:
        value = system.get(name)
        return value if isinstance(value, str) else ""

    return MachineIdentity(uuid=uuid_digits(text("UUID")), serial=text("SerialNumber").strip())
