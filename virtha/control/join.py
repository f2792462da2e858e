"""A host joins: token in, certificate out (L6)."""

import base64
import re
from uuid import UUID, uuid4

import msgspec

from virtha.control.effects import Dispatcher, Effects
from virtha.control.history import record
from virtha.control.names import check_name, taken
from virtha.control.requests import HostCertificateRequest, JoinRequest
from virtha.control.secret_tokens import parse_join, secret_matches
from virtha.control.views import HostCertificate, JoinAnswer, MigrationCertificate
from virtha.model.errors import Conflict, InvalidInput, Unauthenticated, VirthaError
from virtha.model.host import Cluster, Host
from virtha.model.ids import HostId
from virtha.model.time import format_utc
from virtha.model.user import Token, TokenKind
from virtha.ports.authority import (
    RENEW_BEFORE_MS,
    RENEW_EARLY_MS,
    Authority,
    HostSigned,
    SignedCertificate,
)
from virtha.store.clusters import find_cluster
from virtha.store.hosts import (
    HostRow,
    add_certificate,
    add_host,
    certificate_is_valid,
    find_host,
    find_host_by_libvirt_uuid,
)
from virtha.store.installations import next_host_number, the_installation
from virtha.store.store import Store, Transaction, WriteTransaction
from virtha.store.users import find_token, save_token

CSR_LENGTH_MAX = 16_384
_PRINTABLE = re.compile(r"[^\x20-\x7e]")


class Join:
    def __init__(
        self,
        store: Store,
        authority: Authority,
        dispatcher: Dispatcher,
        servers: tuple[str, ...],
    ) -> None:
        self._store = store
        self._authority = authority
        self._dispatcher = dispatcher
        self._servers = servers

    async def join(self, request: JoinRequest, *, address: str) -> JoinAnswer:
        """Raises Unauthenticated (`problem.token.unknown`, `.expired`, `.used`), Conflict, InvalidInput."""
        try:
            answer, cluster = await self._join(request)
        except VirthaError as error:
            await self._tell_refused(request, address, error)
            raise
        effects = Effects()
        effects.configure(cluster.id)
        await self._dispatcher.carry_out(effects)
        return answer

    async def migration_certificate(self, request: HostCertificateRequest) -> MigrationCertificate:
        """For live migration.

        Raises Unauthenticated (of no host, or of one that was removed), InvalidInput.
        """
        signed = self._asking(request)
        async with self._store.write() as tx:
            row = await _allowed(tx, signed)
            certificate = self._authority.sign_migration(request.csr_pem, host_id=row.host.id)
            await record(tx, "host.migration_certificate", host=row.host, name=row.host.name)
        return MigrationCertificate(
            certificate_pem=certificate.certificate_pem,
            authority_pem=self._authority.certificate_pem(),
            name=f"{row.host.id}.migration.virtha",
        )

    async def renewed_certificate(self, request: HostCertificateRequest) -> HostCertificate:
        """The host's next certificate, for the key that it has. The present one stays good until it ends.

        Raises Unauthenticated (of no host, of one that was removed, or too late), InvalidInput.
        """
        signed = self._asking(request)
        if self._authority.key_of_request(request.csr_pem) != signed.public_key:
            # Whoever gets hold of a key once must not have one of his own ever after.
            raise InvalidInput("is for another key than the host's", field="csr_pem")
        async with self._store.write() as tx:
            row = await _allowed(tx, signed)
            if signed.not_after <= tx.clock.wall_ms():
                raise Unauthenticated(
                    "this host's certificate has ended",
                    code="wire.refused.certificate",
                    field="certificate_pem",
                    fix="join the host again: virtha agent join --force",
                )
            if signed.not_after - RENEW_BEFORE_MS - RENEW_EARLY_MS > tx.clock.wall_ms():
                raise Conflict(
                    f"this host's certificate is good until {format_utc(signed.not_after)}",
                    field="certificate_pem",
                    fix="is the host's clock right, and the server's?",
                )
            found = self._authority.sign_host(request.csr_pem, host_id=row.host.id)
            await add_certificate(tx, found.serial, row.host.id, found.not_after)
            await record(tx, "host.certificate_renewed", host=row.host, name=row.host.name)
        return HostCertificate(certificate_pem=found.certificate_pem, not_after=found.not_after)

    def _asking(self, request: HostCertificateRequest) -> HostSigned:
        for field in ("certificate_pem", "csr_pem", "signature"):
            if len(getattr(request, field)) > CSR_LENGTH_MAX:
                raise InvalidInput(
                    "is too long", field=field, allowed=(f"{CSR_LENGTH_MAX} characters",)
                )
        try:
            signature = base64.b64decode(request.signature, validate=True)
        except ValueError:
            raise InvalidInput("is no base64", field="signature") from None
        return self._authority.asking_host(
            request.certificate_pem, request.csr_pem.encode(), signature
        )

    async def _join(self, request: JoinRequest) -> tuple[JoinAnswer, Cluster]:
        libvirt_uuid = _check_request(request)
        async with self._store.read() as reading:
            # Before the signing: whoever has no token costs us no signature.
            await self._check(reading, request, libvirt_uuid)
        host_id = HostId(str(uuid4()))
        signed = self._authority.sign_host(request.csr_pem, host_id=host_id)
        async with self._store.write() as tx:
            token, cluster = await self._check(tx, request, libvirt_uuid)
            await save_token(tx, msgspec.structs.replace(token, uses=token.uses + 1))
            host = await self._add(tx, request, host_id, signed, cluster, libvirt_uuid)
            row = await the_installation(tx)
            answer = JoinAnswer(
                host_id=host_id,
                number=host.number,
                name=host.name,
                installation_id=row.installation.id,
                cluster=cluster.name,
                cluster_id=cluster.id,
                certificate_pem=signed.certificate_pem,
                authority_pem=self._authority.certificate_pem(),
                servers=self._servers,
            )
        return answer, cluster

    async def _check(
        self, tx: Transaction, request: JoinRequest, libvirt_uuid: str | None
    ) -> tuple[Token, Cluster]:
        token = await self._check_token(tx, request.token)
        if await find_host(tx, request.name) is not None:
            raise taken("host", request.name)
        if libvirt_uuid is not None:
            other = await find_host_by_libvirt_uuid(tx, libvirt_uuid)
            if other is not None:
                raise Conflict(
                    f"this libvirt has joined already, as {other.host.name}",
                    field="libvirt_uuid",
                    fix=f"remove {other.host.name} first; or, if this machine is a clone, give its "
                    "libvirtd a host_uuid of its own",
                )
        cluster = await find_cluster(tx, token.cluster_id or "")
        assert cluster is not None, "a token goes with its cluster"
        return token, cluster

    async def _check_token(self, tx: Transaction, text: str) -> Token:
        parsed = parse_join(text)
        if parsed is not None and parsed.fingerprint != self._authority.fingerprint():
            raise Unauthenticated(
                "the token is of another installation",
                code="problem.authority.wrong",
                field="token",
                fix="use a token of this server: 'virtha token create'",
            )
        row = await find_token(tx, parsed.token_id) if parsed is not None else None
        if (
            parsed is None
            or row is None
            or row.token.kind is not TokenKind.JOIN
            or not secret_matches(parsed.secret, row.secret_hash)
        ):
            raise Unauthenticated(
                "the token is unknown",
                code="problem.token.unknown",
                field="token",
                fix="copy it whole, or make a new one: 'virtha token create'",
            )
        token = row.token
        if token.expires <= self._store.clock.wall_ms():
            raise Unauthenticated(
                "the token has expired",
                code="problem.token.expired",
                field="token",
                fix="make a new one: 'virtha token create'",
            )
        if token.uses_max is not None and token.uses >= token.uses_max:
            raise Unauthenticated(
                "the token was used already",
                code="problem.token.used",
                field="token",
                fix="make a new one: 'virtha token create'",
            )
        return token

    async def _add(
        self,
        tx: WriteTransaction,
        request: JoinRequest,
        host_id: HostId,
        signed: SignedCertificate,
        cluster: Cluster,
        libvirt_uuid: str | None,
    ) -> Host:
        host = await add_host(
            tx,
            Host(
                id=host_id,
                name=request.name,
                number=await next_host_number(tx),
                cluster_id=cluster.id,
                certificate_serial=signed.serial,
            ),
            libvirt_uuid=libvirt_uuid,
            # It holds nothing of ours yet: no inventory of it is awaited.
            timeline=(await the_installation(tx)).timeline,
        )
        await add_certificate(tx, signed.serial, host_id, signed.not_after)
        await record(tx, "host.joined", host=host, name=host.name)
        return host

    async def _tell_refused(self, request: JoinRequest, address: str, error: VirthaError) -> None:
        name = _PRINTABLE.sub("?", request.name[:64])
        async with self._store.write() as tx:
            await record(
                tx,
                "join.refused",
                reason=f"{name} from {address}: {error.message}",
                problem=error.code,
                address=address,
            )


def _check_request(request: JoinRequest) -> str | None:
    check_name(request.name)
    if len(request.csr_pem) > CSR_LENGTH_MAX:
        raise InvalidInput(
            "is too long", field="csr_pem", allowed=(f"{CSR_LENGTH_MAX} characters",)
        )
    if request.libvirt_uuid is None:
        return None
    try:
        return str(UUID(request.libvirt_uuid))
    except ValueError:
        raise InvalidInput(
            f"'{request.libvirt_uuid[:64]}' is no UUID", field="libvirt_uuid"
        ) from None


async def _allowed(tx: Transaction, signed: HostSigned) -> HostRow:
    """Raises Unauthenticated."""
    row = await find_host(tx, signed.host_id)
    if row is None or not await certificate_is_valid(tx, signed.serial, signed.host_id):
        raise Unauthenticated(
            "this host was removed, or its certificate revoked",
            code="wire.refused.revoked",
            field="certificate_pem",
            fix="join again",
        )
    return row
