"""Roles, who has which where, sessions and access tokens: thin over control."""

from virtha.api.route import (
    ADMINISTRATOR,
    VIEWER,
    Answer,
    Call,
    NoBody,
    NoQuery,
    PartQuery,
    Route,
)
from virtha.control.access_views import (
    AccessTokenCreate,
    AccessTokenSecret,
    GrantCreate,
    GrantView,
    RoleChange,
    RoleCreate,
    RoleView,
    SessionItem,
)
from virtha.control.views import Page
from virtha.model.errors import NotFound


class SessionQuery(PartQuery, frozen=True, kw_only=True):
    """``user``: id or name, for administrators; none: your own."""

    user: str | None = None


async def list_roles(call: Call[PartQuery, NoBody]) -> Answer:
    return Answer(body=await call.control.roles.list())


async def create_role(call: Call[NoQuery, RoleCreate]) -> Answer:
    role = await call.control.roles.create(call.caller, call.body)
    return Answer(body=role, revision=role.revision, location=f"/v1/roles/{role.id}")


async def get_role(call: Call[NoQuery, NoBody]) -> Answer:
    role = await call.control.roles.get(call.ref)
    return Answer(body=role, revision=role.revision)


async def change_role(call: Call[NoQuery, RoleChange]) -> Answer:
    role = await call.control.roles.change(call.caller, call.ref, call.body, call.if_match)
    return Answer(body=role, revision=role.revision)


async def delete_role(call: Call[NoQuery, NoBody]) -> Answer:
    await call.control.roles.delete(call.caller, call.ref, call.if_match)
    return Answer()


async def list_grants(call: Call[PartQuery, NoBody]) -> Answer:
    return Answer(body=await call.control.roles.of_user(call.ref))


async def create_grant(call: Call[NoQuery, GrantCreate]) -> Answer:
    return Answer(body=await call.control.roles.grant(call.caller, call.ref, call.body))


async def delete_grant(call: Call[NoQuery, NoBody]) -> Answer:
    await call.control.roles.revoke(call.caller, call.ref, call.path["id"])
    return Answer()


async def list_sessions(call: Call[SessionQuery, NoBody]) -> Answer:
    return Answer(body=await call.control.sessions.list(call.caller, call.query.user))


async def create_access_token(call: Call[NoQuery, AccessTokenCreate]) -> Answer:
    made = await call.control.sessions.create_token(call.caller, call.body, address=call.address)
    return Answer(body=made, location="/v1/sessions")


async def end_session(call: Call[NoQuery, NoBody]) -> Answer:
    await call.control.sessions.end(call.caller, call.path["id"])
    return Answer()


ROUTES: tuple[Route, ...] = (
    Route(
        method="GET",
        path="/v1/roles",
        role=VIEWER,
        summary="List roles and their permissions, the fixed ones first",
        handler=list_roles,
        query=PartQuery,
        cut_by=lambda one: one.name,
        answer=Page[RoleView],
    ),
    Route(
        method="POST",
        path="/v1/roles",
        role=ADMINISTRATOR,
        summary="Create a role",
        handler=create_role,
        body=RoleCreate,
        answer=RoleView,
        status=201,
    ),
    Route(
        method="GET",
        path="/v1/roles/{ref}",
        role=VIEWER,
        summary="Show a role",
        handler=get_role,
        answer=RoleView,
    ),
    Route(
        method="PATCH",
        path="/v1/roles/{ref}",
        role=ADMINISTRATOR,
        summary="Change a role that people made",
        handler=change_role,
        body=RoleChange,
        answer=RoleView,
        conditional=True,
    ),
    Route(
        method="DELETE",
        path="/v1/roles/{ref}",
        role=ADMINISTRATOR,
        summary="Delete a role that nobody has",
        handler=delete_role,
        status=204,
        conditional=True,
    ),
    Route(
        method="GET",
        path="/v1/users/{ref}/grants",
        role=ADMINISTRATOR,
        summary="List the roles that a user has beyond their own, and where",
        handler=list_grants,
        query=PartQuery,
        cut_by=lambda one: one.grant.id,
        answer=Page[GrantView],
    ),
    Route(
        method="POST",
        path="/v1/users/{ref}/grants",
        role=ADMINISTRATOR,
        summary="Give a user a role in a cluster, or one that people made in all",
        handler=create_grant,
        body=GrantCreate,
        answer=GrantView,
        status=201,
    ),
    Route(
        method="DELETE",
        path="/v1/users/{ref}/grants/{id}",
        role=ADMINISTRATOR,
        summary="Take a role from a user",
        handler=delete_grant,
        status=204,
    ),
    Route(
        method="GET",
        path="/v1/sessions",
        role=VIEWER,
        summary="List your sign-ins and access tokens; administrators: somebody's",
        handler=list_sessions,
        query=SessionQuery,
        cut_by=lambda one: one.id,
        answer=Page[SessionItem],
        errors=(NotFound,),
    ),
    Route(
        method="POST",
        path="/v1/sessions/tokens",
        role=VIEWER,
        summary="Make an access token, also one that may less than you; it is shown this once",
        handler=create_access_token,
        body=AccessTokenCreate,
        answer=AccessTokenSecret,
        status=201,
        secret=True,
        errors=(NotFound,),
    ),
    Route(
        method="DELETE",
        path="/v1/sessions/{id}",
        role=VIEWER,
        summary="End a sign-in or an access token",
        handler=end_session,
        status=204,
    ),
)
