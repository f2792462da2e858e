"""Join tokens."""

from uuid import uuid4

from virtha.control.history import changes_between, record
from virtha.control.names import check_limit, check_text, page_of, the_cluster
from virtha.control.requests import PageQuery, TokenCreate
from virtha.control.secret_tokens import hash_secret, join_text, make_secret
from virtha.control.views import Caller, Page, TokenSecret
from virtha.model.errors import InvalidInput, NotFound
from virtha.model.ids import TokenId
from virtha.model.time import UtcMillis, format_duration_ms
from virtha.model.user import Token, TokenKind
from virtha.ports.authority import Authority
from virtha.store.store import Store, Transaction
from virtha.store.users import TokenRow, add_token, drop_token, find_token, tokens_after

EXPIRES_MS_MIN = 1_000
EXPIRES_MS_MAX = 30 * 86_400_000
USES_MAX = 10_000


async def the_join_token(tx: Transaction, token_id: str) -> TokenRow:
    """Raises NotFound."""
    row = await find_token(tx, token_id)
    if row is None or row.token.kind is not TokenKind.JOIN:
        raise NotFound(f"there is no join token '{token_id[:64]}'")
    return row


class Tokens:
    def __init__(self, store: Store, authority: Authority) -> None:
        self._store = store
        self._authority = authority

    async def list(self, query: PageQuery) -> Page[Token]:
        """Join tokens only: sign-ins are their users' business."""
        limit = check_limit(query.limit)
        async with self._store.read() as tx:
            found = await tokens_after(tx, TokenKind.JOIN, query.after or "", limit + 1)
            rows, more = page_of(found, limit)
            return Page(
                items=rows, revision=await tx.revision_now(), next=rows[-1].id if more else None
            )

    async def create(self, caller: Caller, request: TokenCreate) -> TokenSecret:
        if not EXPIRES_MS_MIN <= request.expires_ms <= EXPIRES_MS_MAX:
            raise InvalidInput(
                f"{format_duration_ms(request.expires_ms)} is out of range",
                field="expires_ms",
                allowed=(
                    f"{format_duration_ms(EXPIRES_MS_MIN)} to {format_duration_ms(EXPIRES_MS_MAX)}",
                ),
            )
        if request.uses_max is not None and not 1 <= request.uses_max <= USES_MAX:
            raise InvalidInput(
                f"{request.uses_max} is out of range",
                field="uses_max",
                allowed=(f"1 to {USES_MAX}",),
            )
        check_text(request.description, field="description")
        secret = make_secret()
        async with self._store.write() as tx:
            cluster = await the_cluster(tx, request.cluster, field="cluster")
            now = tx.clock.wall_ms()
            token = await add_token(
                tx,
                Token(
                    id=TokenId(str(uuid4())),
                    kind=TokenKind.JOIN,
                    cluster_id=cluster.id,
                    description=request.description,
                    created=now,
                    expires=UtcMillis(now + request.expires_ms),
                    uses_max=request.uses_max,
                ),
                hash_secret(secret),
            )
            await record(
                tx,
                "token.created",
                cluster_id=cluster.id,
                by=caller.name,
                cluster=cluster.name,
                token=token.id,
                **changes_between(None, token),
            )
        text = join_text(token.id, secret, self._authority.fingerprint())
        return TokenSecret(token=token, secret=text)

    async def delete(self, caller: Caller, token_id: str) -> None:
        async with self._store.write() as tx:
            row = await the_join_token(tx, token_id)
            await drop_token(tx, row.token.id)
            await record(
                tx,
                "token.deleted",
                cluster_id=row.token.cluster_id,
                by=caller.name,
                token=row.token.id,
                **changes_between(row.token, None),
            )
