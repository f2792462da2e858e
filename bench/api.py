"""What pages of lists cost in a large installation: 20,000 VMs on 1,000 hosts, with a year's 5 million events.

    python bench/api.py [--vms 20000] [--hosts 1000] [--events 5000000] [--seconds 5] [--requests 200] [--directory .stamp/api]
                        [--case vms_by_name …]

The server's store, use cases, API and TLS in a process of their own; one client on one connection, one request after the other. The hosts are
played (`large_installation/serve.py`), nothing writes meanwhile. CPU time is all of the server's process, latency the client's, until the
last byte of the answer; what is in it is counted before the next one is asked for. Growth: CPU time for one request, compared with an installation of a
tenth of everything: a page holds as many items in both, unless the figure's note says how many in which. Both databases are made once,
in some minutes, and kept in the directory.
"""

import argparse
import http.client
import json
import os
import random
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from large_installation.database import (
    ADMINISTRATOR,
    CUSTOMERS,
    HOSTS_PER_CLUSTER,
    PASSWORD,
    ROLES,
    Size,
    host_name,
    installation,
    vm_name,
)
from report import Figure, at_most, finish, quantile, shown

from virtha.server.config import ServerPaths

ROOT = Path(__file__).resolve().parents[1]
PAGE, LIST = 100, 1_000
P99_MS = 50.0
"""Issue 6: of a page, on an idle machine."""
WARM_UP = 5
REQUESTS_MIN = 200
"""Or a p99 would say nothing."""
FULL_PAGES_FROM = Size(vms=2_000, hosts=PAGE, events=500_000)
"""In a smaller one some searches find less than a page."""
STARTS = 19
"""Pages that a list without a search is read on from: one behind each twentieth of it, but for the last."""
CPU_TICKS = os.sysconf("SC_CLK_TCK")
"""In a second."""
DEADLINE_S = 60.0
READY_S = 120.0


@dataclass(frozen=True)
class Places:
    """Of an installation, looked up once, before anything is measured."""

    size: Size
    made_at: datetime
    """When the last of its VMs was started: it is made once, and what was an hour ago then is further away each day."""
    starts: Sequence[str]
    """Cursors of its list of VMs."""


@dataclass(frozen=True)
class Drawn:
    """Names, times and cursors that there are, others each time."""

    places: Places
    chance: random.Random

    @property
    def size(self) -> Size:
        return self.places.size

    @property
    def vm(self) -> str:
        return vm_name(self.chance.randint(1, self.size.vms))

    @property
    def host(self) -> str:
        return host_name(self.chance.randint(1, self.size.hosts))

    @property
    def cluster(self) -> str:
        return f"c{self.chance.randint(1, -(-self.size.hosts // HOSTS_PER_CLUSTER)):03}"

    @property
    def role(self) -> str:
        return self.chance.choice(ROLES)

    @property
    def start(self) -> str:
        return self.chance.choice(self.places.starts)

    def days_before(self, first: int, last: int) -> str:
        return self.hours_before(24 * self.chance.randint(first, last))

    def hours_before(self, hours: int) -> str:
        return f"{self.places.made_at - timedelta(hours=hours):%Y-%m-%dT%H:%M:%SZ}"


def _items(raw: bytes) -> int:
    return len(json.loads(raw)["items"])


def _vms_as_xml(raw: bytes) -> int:
    return raw.count(b"</vm>")


def _events_as_xml(raw: bytes) -> int:
    return raw.count(b"</event>")


@dataclass(frozen=True, kw_only=True)
class Case:
    path: str
    given: Callable[[Drawn], Mapping[str, str]]
    what: str
    limit: int = PAGE
    bounded_by: str = "limit"
    """What the path calls it."""
    media_type: str = "application/json"
    count: Callable[[bytes], int] = _items
    """Of an answer."""
    least: int = PAGE
    """Items of a page; fewer mean that something else was measured."""
    p99_ms: float | None = P99_MS
    """None: it is shown and held against nothing."""


def _search(path: str, what: str, text: Callable[[Drawn], str], *, least: int = PAGE) -> Case:
    return Case(path=path, given=lambda drawn: {"search": text(drawn)}, what=what, least=least)


def _facade(
    path: str,
    what: str,
    text: Callable[[Drawn], str],
    *,
    count: Callable[[bytes], int],
    size: int = PAGE,
    p99_ms: float | None = P99_MS,
) -> Case:
    return Case(
        path=f"/ovirt-engine/api/{path}",
        given=lambda drawn: {"search": text(drawn)},
        what=f"oVirt's API, as XML: {what}",
        limit=size,
        bounded_by="max",
        media_type="application/xml",
        count=count,
        least=size,
        p99_ms=p99_ms,
    )


VMS, HOSTS, EVENTS = "/v1/vms", "/v1/hosts", "/v1/events"
CASES: dict[str, Case] = {
    "vms_plain": Case(
        path=VMS, given=lambda drawn: {"after": drawn.start}, what="a page from a cursor on"
    ),
    "vms_by_name": _search(VMS, "name = web-0*", lambda drawn: f"name = {drawn.role}-0*"),
    "vms_by_state": _search(
        VMS,
        "status = up and ha = true sortby memory desc",
        lambda drawn: "status = up and ha = true sortby memory desc",
    ),
    "vms_by_cluster": _search(
        VMS,
        "cluster = c007 and status = up",
        lambda drawn: f"cluster = {drawn.cluster} and status = up",
    ),
    "vms_by_host": _search(VMS, "host = h0042", lambda drawn: f"host = {drawn.host}", least=16),
    "vms_by_watchdog": _search(
        VMS,
        "last_event > 2026-05-01T00:00:00Z sortby last_event desc",
        lambda drawn: f"last_event > {drawn.days_before(180, 340)} sortby last_event desc",
    ),
    "vms_by_text": _search(
        VMS, '"customer 1"', lambda drawn: f'"customer {drawn.chance.randint(1, 9)}"'
    ),
    "vms_by_rare_text": _search(
        VMS,
        '"customer 1234"',
        lambda drawn: f'"customer {drawn.chance.randrange(1_000, CUSTOMERS)}"',
        least=0,
    ),
    "vms_by_events": _search(
        VMS, "Events.time > four hours ago", lambda drawn: f"Events.time > {drawn.hours_before(4)}"
    ),
    "hosts_by_vms": _search(
        HOSTS,
        "Vms.name = db-* and status = up",
        lambda drawn: f"Vms.name = {drawn.role}-* and status = up",
    ),
    "events_of_vm": Case(path=EVENTS, given=lambda drawn: {"vm": drawn.vm}, what="vm=web-00001"),
    "events_searched_of_vm": _search(
        EVENTS, "event_vm = web-00001", lambda drawn: f"event_vm = {drawn.vm}"
    ),
    "events_by_severity": _search(EVENTS, "severity >= error", lambda drawn: "severity >= error"),
    # What a page of these looks at of the log is bounded: it may find nothing there.
    "events_by_code_and_time": _search(
        EVENTS,
        "code = vm.watchdog.fired and time < 2026-08-01T00:00:00Z",
        lambda drawn: f"code = vm.watchdog.fired and time < {drawn.days_before(10, 300)}",
        least=0,
    ),
    "events_by_text": _search(
        EVENTS, '"web-00001 fired"', lambda drawn: f'"{drawn.vm} fired"', least=0
    ),
    "facade_page": _facade(
        "vms",
        "status = up sortby name page 2",
        lambda drawn: f"status = up sortby name page {drawn.chance.randint(1, 3)}",
        count=_vms_as_xml,
    ),
    "facade_events_of_vm": _facade(
        "events",
        "event_vm = web-00001",
        lambda drawn: f"event_vm = {drawn.vm}",
        count=_events_as_xml,
    ),
    "facade_list": _facade(
        "vms",
        "status = up sortby name, a list of 1,000 and no page",
        lambda drawn: "status = up sortby name page 1",
        count=_vms_as_xml,
        size=LIST,
        p99_ms=None,
    ),
}


class Client:
    """One connection, kept."""

    def __init__(self, paths: ServerPaths, address: str) -> None:
        context = ssl.create_default_context(cafile=str(paths.authority_certificate))
        self._connection = http.client.HTTPSConnection(address, context=context, timeout=DEADLINE_S)
        self._headers = dict[str, str]()

    def sign_in(self) -> None:
        body = json.dumps({"user": ADMINISTRATOR, "password": PASSWORD})
        headers = {"Content-Type": "application/json"}
        self._connection.request("POST", "/v1/sessions", body, headers)
        answer = self._connection.getresponse()
        raw = answer.read()
        assert answer.status == http.HTTPStatus.CREATED, raw
        self._headers["Authorization"] = f"Bearer {json.loads(raw)['token']}"

    def get(self, path: str, media_type: str) -> tuple[int, bytes, float]:
        """Status, body, milliseconds until all of it was there."""
        headers = {**self._headers, "Accept": media_type}
        began = time.perf_counter()
        self._connection.request("GET", path, headers=headers)
        answer = self._connection.getresponse()
        raw = answer.read()
        return answer.status, raw, (time.perf_counter() - began) * 1_000

    def close(self) -> None:
        self._connection.close()


@dataclass(frozen=True)
class Serving:
    client: Client
    process: int

    def cpu_s(self) -> float:
        """Of all threads of the server."""
        after_name = Path(f"/proc/{self.process}/stat").read_text().rpartition(")")[2].split()
        return (int(after_name[11]) + int(after_name[12])) / CPU_TICKS


@contextmanager
def serving(paths: ServerPaths) -> Iterator[Serving]:
    with subprocess.Popen(
        [sys.executable, str(ROOT / "bench/large_installation/serve.py"), str(paths.root)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    ) as process:
        try:
            assert process.stdout is not None
            ready: dict[str, Any] = json.loads(process.stdout.readline())
            with closing(Client(paths, ready["address"])) as client:
                client.sign_in()
                yield Serving(client, process.pid)
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(READY_S)


@dataclass(frozen=True, kw_only=True)
class Measured:
    requests: int
    cpu_s: float
    took_ms: list[float]
    items: float
    """Of a page, in the mean."""

    @property
    def cpu_each_s(self) -> float:
        return max(self.cpu_s, 1 / CPU_TICKS) / self.requests


def look_up(served: Serving, size: Size) -> Places:
    # Of a code that a sign-in doesn't add to.
    (newest,) = _asked(served, EVENTS, {"code": "vm.started", "limit": 1})["items"]
    starts = list[str]()
    asked: dict[str, str | int] = {"limit": size.vms // (STARTS + 1)}
    for _ in range(STARTS):
        asked["after"] = _asked(served, VMS, asked)["next"]
        starts.append(str(asked["after"]))
    return Places(size, datetime.fromisoformat(newest["at"]), starts)


def measure(
    case: Case, served: Serving, places: Places, *, seconds: float, requests_min: int
) -> Measured:
    drawn = Drawn(places, random.Random(1))
    for _ in range(WARM_UP):
        _ask(case, served, drawn)
    took, items = list[float](), list[int]()
    began, cpu_s = time.monotonic(), served.cpu_s()
    while time.monotonic() - began < seconds or len(took) < requests_min:
        raw, took_ms = _ask(case, served, drawn)
        took.append(took_ms)
        items.append(case.count(raw))  # while the server has nothing to do; a list has 3 MB
    cpu_s = served.cpu_s() - cpu_s
    if places.size.holds(FULL_PAGES_FROM) and min(items) < case.least:
        sys.exit(f"{case.what}: a page of {min(items)}, where {case.least} and more were expected")
    return Measured(requests=len(took), cpu_s=cpu_s, took_ms=took, items=sum(items) / len(items))


def _ask(case: Case, served: Serving, drawn: Drawn) -> tuple[bytes, float]:
    given = {**case.given(drawn), case.bounded_by: case.limit}
    return _answer(served, case.path, given, case.media_type)


def _answer(
    served: Serving, path: str, given: Mapping[str, str | int], media_type: str
) -> tuple[bytes, float]:
    whole = f"{path}?{urlencode(given)}"
    status, raw, took_ms = served.client.get(whole, media_type)
    if status != http.HTTPStatus.OK:
        sys.exit(f"{whole}: {status} {raw.decode(errors='replace')}")
    return raw, took_ms


def _asked(served: Serving, path: str, given: Mapping[str, str | int]) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads(_answer(served, path, given, "application/json")[0])
    return answer


def figures_of(name: str, case: Case, small: Measured, large: Measured) -> dict[str, Figure]:
    took = large.took_ms
    note = f"{case.what}; median {quantile(took, 0.5):.1f} ms, {large.items:.0f} items"
    p99 = quantile(took, 0.99)
    return {
        f"{name}_p99": shown(p99, "ms", note)
        if case.p99_ms is None
        else at_most(case.p99_ms, p99, "ms", note),
        f"{name}_rate": shown(1 / large.cpu_each_s, "requests/CPU-s"),
        f"{name}_growth": shown(
            large.cpu_each_s / small.cpu_each_s,
            "times",
            "from a tenth of it all"
            if large.items == small.items
            else f"from a tenth of it all, where a page held {small.items:.1f} and not {large.items:.1f}",
        ),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--vms", type=int, default=20_000)
    parser.add_argument("--hosts", type=int, default=0, help="0: one for each 20 VMs")
    parser.add_argument("--events", type=int, default=5_000_000)
    parser.add_argument("--seconds", type=float, default=5.0, help="of each case")
    parser.add_argument("--requests", type=int, default=REQUESTS_MIN, help="of each case, at least")
    parser.add_argument("--directory", type=Path, default=ROOT / ".stamp/api")
    parser.add_argument("--case", action="append", choices=CASES, help="only this; may be repeated")
    given = parser.parse_args()
    if given.vms < 200 or given.events < 1_000:
        parser.error("at least 200 VMs and 1,000 events: a tenth of it is measured too")
    if given.requests < 1:
        parser.error("--requests: at least 1")
    large = Size(vms=given.vms, hosts=given.hosts or given.vms // 20, events=given.events)
    small = Size(vms=large.vms // 10, hosts=max(2, large.hosts // 10), events=large.events // 10)
    names = given.case or list(CASES)
    found: dict[Size, dict[str, Measured]] = {}
    for size in (small, large):
        with serving(installation(given.directory, size)) as served:
            found[size] = {}
            places = look_up(served, size)
            if not size.holds(FULL_PAGES_FROM):
                print(f"{size.name}: too small for whole pages", file=sys.stderr, flush=True)
            for name in names:
                print(f"{size.vms} VMs: {name}", file=sys.stderr, flush=True)
                found[size][name] = measure(
                    CASES[name],
                    served,
                    places,
                    seconds=given.seconds,
                    requests_min=given.requests,
                )
    figures: dict[str, Figure] = {}
    for name in names:
        figures |= figures_of(name, CASES[name], found[small][name], found[large][name])
    return finish("api", figures)


if __name__ == "__main__":
    sys.exit(main())
