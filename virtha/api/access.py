"""Who may do what: sessions, users, tokens, joining; settings and hold."""

from virtha.api.route import Answer, Call, NoBody, NoQuery
from virtha.control.requests import (
    HoldPut,
    JoinRequest,
    PageQuery,
    SessionCreate,
    SettingPut,
    TokenCreate,
    UserChange,
    UserCreate,
)
from virtha.control.views import Page
from virtha.model.errors import InvalidInput
from virtha.model.ids import Revision
from virtha.model.user import SettingScope
from virtha.model.value import Request, Value


class ScopeQuery(Request, frozen=True, kw_only=True):
    """``subject``: id or name of the cluster or host; none for the global scope."""

    scope: SettingScope = SettingScope.GLOBAL
    subject: str | None = None


class AuthorityView(Value, frozen=True, kw_only=True):
    """``fingerprint``: SHA-256 of the certificate, 64 hexadecimal digits, as in join tokens."""

    certificate_pem: str
    fingerprint: str


async def sign_in(call: Call[NoQuery, SessionCreate]) -> Answer:
    session = await call.control.users.sign_in(call.body, address=call.address)
    return Answer(body=session, location="/v1/sessions/current")


async def sign_out(call: Call[NoQuery, NoBody]) -> Answer:
    if call.token is None:
        raise InvalidInput(
            "root on the Unix socket has no session to end",
            field="Authorization",
            fix="send the access token that shall end",
        )
    await call.control.users.sign_out(call.token)
    return Answer()


async def get_authority(call: Call[NoQuery, NoBody]) -> Answer:
    authority = call.services.authority
    return Answer(
        body=AuthorityView(
            certificate_pem=authority.certificate_pem(), fingerprint=authority.fingerprint()
        )
    )


async def join(call: Call[NoQuery, JoinRequest]) -> Answer:
    answer = await call.control.join.join(call.body, address=call.address)
    return Answer(body=answer, location=f"/v1/hosts/{answer.host_id}")


async def list_users(call: Call[PageQuery, NoBody]) -> Answer:
    return Answer(body=await call.control.users.list(call.query))


async def create_user(call: Call[NoQuery, UserCreate]) -> Answer:
    user = await call.control.users.create(call.caller, call.body)
    return Answer(body=user, revision=user.revision, location=f"/v1/users/{user.id}")


async def get_user(call: Call[NoQuery, NoBody]) -> Answer:
    user = await call.control.users.get(call.ref)
    return Answer(body=user, revision=user.revision)


async def change_user(call: Call[NoQuery, UserChange]) -> Answer:
    user = await call.control.users.change(call.caller, call.ref, call.body, call.if_match)
    return Answer(body=user, revision=user.revision)


async def delete_user(call: Call[NoQuery, NoBody]) -> Answer:
    await call.control.users.delete(call.caller, call.ref, call.if_match)
    return Answer()


async def list_tokens(call: Call[PageQuery, NoBody]) -> Answer:
    return Answer(body=await call.control.tokens.list(call.query))


async def create_token(call: Call[NoQuery, TokenCreate]) -> Answer:
    made = await call.control.tokens.create(call.caller, call.body)
    return Answer(body=made, location=f"/v1/tokens/{made.token.id}")


async def delete_token(call: Call[NoQuery, NoBody]) -> Answer:
    await call.control.tokens.delete(call.caller, call.path["id"])
    return Answer()


async def list_settings(call: Call[NoQuery, NoBody]) -> Answer:
    settings = await call.control.settings.list()
    revision = max((setting.revision for setting in settings), default=Revision(0))
    return Answer(body=Page(items=settings, revision=revision))


async def put_setting(call: Call[ScopeQuery, SettingPut]) -> Answer:
    query = call.query
    setting = await call.control.settings.put(
        call.caller, call.path["key"], call.body, scope=query.scope, subject=query.subject
    )
    return Answer(body=setting, revision=setting.revision)


async def delete_setting(call: Call[ScopeQuery, NoBody]) -> Answer:
    query = call.query
    await call.control.settings.delete(
        call.caller, call.path["key"], scope=query.scope, subject=query.subject
    )
    return Answer()


async def get_hold(call: Call[NoQuery, NoBody]) -> Answer:
    return Answer(body=await call.control.hold.get())


async def set_hold(call: Call[NoQuery, HoldPut]) -> Answer:
    return Answer(body=await call.control.hold.set(call.caller, call.body))


async def lift_hold(call: Call[NoQuery, NoBody]) -> Answer:
    return Answer(body=await call.control.hold.lift(call.caller))
