"""Who may come in: sessions, users, join tokens, joining hosts."""

from virtha.api.route import (
    ADMINISTRATOR,
    OPEN,
    VIEWER,
    Answer,
    Call,
    NoBody,
    NoQuery,
    Route,
)
from virtha.control.requests import (
    HostCertificateRequest,
    JoinRequest,
    PageQuery,
    SearchQuery,
    SessionCreate,
    TokenCreate,
    UserChange,
    UserCreate,
)
from virtha.control.views import (
    CurrentSession,
    HostCertificate,
    JoinAnswer,
    MigrationCertificate,
    Page,
    SessionView,
    TokenSecret,
)
from virtha.model.errors import Conflict, InvalidInput, NotFound, Unauthenticated
from virtha.model.user import Token, User
from virtha.model.value import Value


class AuthorityView(Value, frozen=True, kw_only=True):
    """``fingerprint``: SHA-256 of the certificate, 64 hexadecimal digits, as in join tokens."""

    certificate_pem: str
    fingerprint: str


async def sign_in(call: Call[NoQuery, SessionCreate]) -> Answer:
    session = await call.control.users.sign_in(call.body, address=call.address)
    return Answer(body=session, location="/v1/sessions/current")


async def get_current(call: Call[NoQuery, NoBody]) -> Answer:
    if call.token is not None:
        return Answer(body=await call.control.users.current(call.token))
    caller = call.caller
    by_socket = CurrentSession(user=caller.name, role=caller.role, by="socket")
    return Answer(body=by_socket)


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


async def migration_certificate(call: Call[NoQuery, HostCertificateRequest]) -> Answer:
    return Answer(body=await call.control.join.migration_certificate(call.body))


async def renewed_certificate(call: Call[NoQuery, HostCertificateRequest]) -> Answer:
    return Answer(body=await call.control.join.renewed_certificate(call.body))


async def list_users(call: Call[SearchQuery, NoBody]) -> Answer:
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


ROUTES: tuple[Route, ...] = (
    Route(
        method="GET",
        path="/v1/authority",
        role=OPEN,
        summary="The certificate authority that hosts and users pin",
        handler=get_authority,
        answer=AuthorityView,
    ),
    Route(
        method="POST",
        path="/v1/sessions",
        role=OPEN,
        summary="Sign in; the token is shown this once",
        handler=sign_in,
        body=SessionCreate,
        answer=SessionView,
        status=201,
        errors=(Unauthenticated,),
    ),
    Route(
        method="GET",
        path="/v1/sessions/current",
        role=VIEWER,
        summary="Who am I, and until when?",
        handler=get_current,
        answer=CurrentSession,
    ),
    Route(
        method="DELETE",
        path="/v1/sessions/current",
        role=VIEWER,
        summary="Sign out",
        handler=sign_out,
        status=204,
    ),
    Route(
        method="POST",
        path="/v1/join",
        role=OPEN,
        summary="A host joins with a join token",
        handler=join,
        body=JoinRequest,
        answer=JoinAnswer,
        status=201,
        errors=(Unauthenticated, NotFound),
    ),
    Route(
        method="POST",
        path="/v1/join/migration",
        role=OPEN,
        summary="A host that has joined has its migration certificate signed",
        handler=migration_certificate,
        body=HostCertificateRequest,
        answer=MigrationCertificate,
        status=201,
        errors=(Unauthenticated,),
    ),
    Route(
        method="POST",
        path="/v1/join/renew",
        role=OPEN,
        summary="A host that has joined has its next certificate signed",
        handler=renewed_certificate,
        body=HostCertificateRequest,
        answer=HostCertificate,
        status=201,
        errors=(Unauthenticated, Conflict),
    ),
    Route(
        method="GET",
        path="/v1/users",
        role=ADMINISTRATOR,
        summary="List users",
        handler=list_users,
        query=SearchQuery,
        answer=Page[User],
    ),
    Route(
        method="POST",
        path="/v1/users",
        role=ADMINISTRATOR,
        summary="Create a user",
        handler=create_user,
        body=UserCreate,
        answer=User,
        status=201,
    ),
    Route(
        method="GET",
        path="/v1/users/{ref}",
        role=ADMINISTRATOR,
        summary="Show a user",
        handler=get_user,
        answer=User,
    ),
    Route(
        method="PATCH",
        path="/v1/users/{ref}",
        role=ADMINISTRATOR,
        summary="Change a user's role or password, or disable them",
        handler=change_user,
        body=UserChange,
        answer=User,
        conditional=True,
    ),
    Route(
        method="DELETE",
        path="/v1/users/{ref}",
        role=ADMINISTRATOR,
        summary="Delete a user",
        handler=delete_user,
        status=204,
        conditional=True,
    ),
    Route(
        method="GET",
        path="/v1/tokens",
        role=ADMINISTRATOR,
        summary="List tokens, without their secrets",
        handler=list_tokens,
        query=PageQuery,
        answer=Page[Token],
    ),
    Route(
        method="POST",
        path="/v1/tokens",
        role=ADMINISTRATOR,
        summary="Make a join token; its secret is shown this once",
        handler=create_token,
        body=TokenCreate,
        answer=TokenSecret,
        status=201,
        secret=True,
        errors=(NotFound,),
    ),
    Route(
        method="DELETE",
        path="/v1/tokens/{id}",
        role=ADMINISTRATOR,
        summary="Revoke a token",
        handler=delete_token,
        status=204,
    ),
)
