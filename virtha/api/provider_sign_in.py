"""Signing in by a provider (OpenID Connect), and setting that provider up."""

from virtha.api.route import ADMINISTRATOR, OPEN, Answer, Call, NoBody, NoQuery, Route
from virtha.control.requests import SignInBegin, SignInFinish, SignInProviderPut
from virtha.control.views import BegunSignInView, SessionView, SignInProviderView
from virtha.model.errors import Forbidden, NotFound, Unauthenticated


async def begin(call: Call[NoQuery, SignInBegin]) -> Answer:
    work = call.control.provider_sign_ins.begin(call.body)
    return Answer(body=await call.services.unless_stopping(work))


async def finish(call: Call[NoQuery, SignInFinish]) -> Answer:
    work = call.control.provider_sign_ins.finish(call.body, address=call.address)
    session = await call.services.unless_stopping(work)
    return Answer(body=session, location="/v1/sessions/current")


async def get_provider(call: Call[NoQuery, NoBody]) -> Answer:
    view = await call.control.provider_sign_ins.get()
    return Answer(body=view, revision=view.provider.revision)


async def put_provider(call: Call[NoQuery, SignInProviderPut]) -> Answer:
    view = await call.control.provider_sign_ins.put(call.caller, call.body, call.if_match)
    return Answer(body=view, revision=view.provider.revision)


async def delete_provider(call: Call[NoQuery, NoBody]) -> Answer:
    await call.control.provider_sign_ins.delete(call.caller, call.if_match)
    return Answer()


# Who sets it up says who is an administrator: that takes what it takes to make one.
ROUTES: tuple[Route, ...] = (
    Route(
        method="POST",
        path="/v1/sign-ins",
        role=OPEN,
        summary="Begin a sign-in by the provider: where the browser has to go",
        handler=begin,
        body=SignInBegin,
        answer=BegunSignInView,
        status=201,
        errors=(NotFound,),
    ),
    Route(
        method="POST",
        path="/v1/sign-ins/finish",
        role=OPEN,
        summary="Finish it with what the browser brought back; the token is shown this once",
        handler=finish,
        body=SignInFinish,
        answer=SessionView,
        status=201,
        errors=(Unauthenticated, Forbidden, NotFound),
    ),
    Route(
        method="GET",
        path="/v1/sign-in-provider",
        role=ADMINISTRATOR,
        own_area="users",
        summary="Show the provider of sign-ins",
        handler=get_provider,
        answer=SignInProviderView,
        errors=(NotFound,),
    ),
    Route(
        method="PUT",
        path="/v1/sign-in-provider",
        role=ADMINISTRATOR,
        own_area="users",
        summary="Set it up; another issuer signs the users of the one before out",
        handler=put_provider,
        body=SignInProviderPut,
        answer=SignInProviderView,
        conditional=True,
    ),
    Route(
        method="DELETE",
        path="/v1/sign-in-provider",
        role=ADMINISTRATOR,
        own_area="users",
        summary="Forget it; its users stay, are signed out, and can't sign in",
        handler=delete_provider,
        status=204,
        conditional=True,
        errors=(NotFound,),
    ),
)
