"""A Ceph pool as the agent and the guardian talk to it: through a process of its own for each, which is killed when it does not
answer in time. See docs/adr/0019-heartbeat-on-rados.md for why a process, and why one that stays.

What was being written when it was killed may land later all the same; whoever writes here says what has to stand there
before (``expected``), so that nothing old lands on something newer.
"""

import errno
import os
import select
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import msgspec

from virtha.drivers.ceph_process import LENGTH, Ask, Connect, Told
from virtha.model.host import CephPool

CONNECT_S = 3
"""It takes a tenth of a second. Told within the time of the agent's regular look at a domain, so that it says why."""
OP_S = 15
"""So long the library waits for OSDs; then it tells a timeout, of which nothing is known. Shorter than any patience here."""
_BEGIN_S = 4
"""Of the process, and of the monitors' greeting."""
ANSWER_BYTES_MAX = 64 << 20
_REAPED_S = 1.0


class CephUnusable(OSError):
    """It can't be connected to. ``field``: the setting that is wrong, as far as can be told."""

    def __init__(self, number: int, text: str, field: str) -> None:
        super().__init__(number, text)
        self.field = field


class CephClient:
    """Not for two threads at once. Connects with the first question, and anew after one that was not answered in time or by
    somebody whom the cluster has shut out.

    What the first connection reached is what all later ones have to reach: a cluster with another number, or a pool with
    another one under the same name, is another storage, however alike its contents look.
    """

    def __init__(
        self,
        pool: CephPool,
        *,
        options: Mapping[str, str] | None = None,
        locked: bool = False,
        connect_s: int = CONNECT_S,
        op_s: int = OP_S,
    ) -> None:
        """``options``: of Ceph's configuration, besides. ``locked``: in memory, as a guardian is."""
        self.pool = pool
        self._options = dict(options or {})
        self._words = ["locked"] if locked else []
        self._connect_s = connect_s
        self._op_s = op_s
        self._identity: tuple[str, int] | None = None
        self._process: subprocess.Popen[bytes] | None = None

    def close(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with suppress(OSError):
                    pipe.close()
        with suppress(subprocess.TimeoutExpired):
            process.wait(_REAPED_S)

    def ask(self, what: str, *, patience_ms: int, **words: Any) -> Any:
        """Raises OSError: of Ceph, ETIMEDOUT, or CephUnusable."""
        process = self._connected()
        try:
            told = self._exchange(process, Ask(what, words), patience_ms)
        except OSError:
            self.close()
            raise
        if told.number in (errno.ESHUTDOWN, errno.EIDRM):
            self.close()  # blocklisted: another connection may not be; or the pool is gone
        if told.number:
            raise OSError(told.number, told.text)
        return told.value

    def command(self, *, patience_ms: int, **words: Any) -> str:
        """Of the monitors, by its name ``prefix`` and arguments; what they answer in JSON."""
        text = msgspec.json.encode({"format": "json", **words}).decode()
        answer: str = self.ask("command", json_text=text, patience_ms=patience_ms)
        return answer

    def _connected(self) -> "subprocess.Popen[bytes]":
        if self._process is not None and self._process.poll() is None:
            return self._process
        self.close()
        process = self._process = subprocess.Popen(
            [sys.executable, "-m", "virtha.drivers.ceph_process", *self._words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        pool = self.pool
        settings = Connect(
            monitors=pool.monitors,
            pool=pool.pool,
            namespace=pool.namespace,
            user=pool.user,
            keyring=pool.keyring_path,
            connect_s=self._connect_s,
            op_s=self._op_s,
            options=self._options,
        )
        try:
            told = self._exchange(process, settings, (self._connect_s + _BEGIN_S) * 1_000)
        except OSError:
            self.close()
            raise
        if told.number:
            self.close()
            raise CephUnusable(told.number, told.text, told.field)
        self._check_identity(told.value)
        return process

    def _check_identity(self, value: Any) -> None:
        cluster, pool_id = value
        if self._identity is None:
            self._identity = (str(cluster), int(pool_id))
        if self._identity != (cluster, pool_id):
            self.close()
            was, pool = self._identity, self.pool.pool
            raise CephUnusable(
                errno.EIDRM,
                f"pool '{pool}' is number {pool_id} of cluster {cluster} now, and was {was[1]} of {was[0]}: another pool",
                "pool",
            )

    def _exchange(
        self, process: "subprocess.Popen[bytes]", question: Connect | Ask, patience_ms: int
    ) -> Told:
        assert process.stdin is not None and process.stdout is not None
        until_s = time.monotonic() + patience_ms / 1_000
        data = msgspec.msgpack.encode(question)
        # It reads all the time, in a thread of its own: this waits for no storage.
        process.stdin.write(LENGTH.pack(len(data)) + data)
        process.stdin.flush()
        source = process.stdout.fileno()
        (length,) = LENGTH.unpack(_read(source, LENGTH.size, until_s))
        if length > ANSWER_BYTES_MAX:
            raise OSError(errno.EMSGSIZE, "an answer beyond all bounds")
        return msgspec.msgpack.decode(_read(source, length, until_s), type=Told)


def _read(source: int, size: int, until_s: float) -> bytes:
    parts: list[bytes] = []
    while size:
        left_s = until_s - time.monotonic()
        if left_s <= 0 or not select.select([source], [], [], left_s)[0]:
            raise OSError(errno.ETIMEDOUT, "Ceph does not answer")
        part = os.read(source, min(size, 1 << 20))
        if not part:
            raise OSError(errno.EPIPE, "the process that talks to Ceph has ended")
        parts.append(part)
        size -= len(part)
    return b"".join(parts)
