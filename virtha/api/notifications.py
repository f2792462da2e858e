"""Receivers, subscriptions, and what became of each message: thin over control."""

from virtha.api.route import ADMINISTRATOR, VIEWER, Answer, Call, NoBody, NoQuery, Route
from virtha.control.requests import (
    DeliveryQuery,
    PageQuery,
    ReceiverChange,
    ReceiverCreate,
    ReceiverTest,
    SubscriptionChange,
    SubscriptionCreate,
)
from virtha.control.views import (
    DeliveryView,
    Page,
    ReceiverTestView,
    ReceiverView,
    SubscriptionView,
)
from virtha.model.errors import NotFound, Unavailable


async def list_receivers(call: Call[PageQuery, NoBody]) -> Answer:
    return Answer(body=await call.control.receivers.list(call.query))


async def create_receiver(call: Call[NoQuery, ReceiverCreate]) -> Answer:
    made = await call.control.receivers.create(call.caller, call.body)
    location = f"/v1/receivers/{made.receiver.id}"
    return Answer(body=made, revision=made.receiver.revision, location=location)


async def get_receiver(call: Call[NoQuery, NoBody]) -> Answer:
    view = await call.control.receivers.get(call.ref)
    return Answer(body=view, revision=view.receiver.revision)


async def change_receiver(call: Call[NoQuery, ReceiverChange]) -> Answer:
    changed = await call.control.receivers.change(call.caller, call.ref, call.body, call.if_match)
    return Answer(body=changed, revision=changed.receiver.revision)


async def delete_receiver(call: Call[NoQuery, NoBody]) -> Answer:
    await call.control.receivers.delete(call.caller, call.ref, call.if_match)
    return Answer()


async def test_receiver(call: Call[NoQuery, ReceiverTest]) -> Answer:
    work = call.control.notifications.test(call.caller, call.ref, call.body)
    return Answer(body=await call.services.unless_stopping(work))


async def list_subscriptions(call: Call[PageQuery, NoBody]) -> Answer:
    return Answer(body=await call.control.subscriptions.list(call.query))


async def create_subscription(call: Call[NoQuery, SubscriptionCreate]) -> Answer:
    made = await call.control.subscriptions.create(call.caller, call.body)
    location = f"/v1/subscriptions/{made.subscription.id}"
    return Answer(body=made, revision=made.subscription.revision, location=location)


async def get_subscription(call: Call[NoQuery, NoBody]) -> Answer:
    view = await call.control.subscriptions.get(call.ref)
    return Answer(body=view, revision=view.subscription.revision)


async def change_subscription(call: Call[NoQuery, SubscriptionChange]) -> Answer:
    changed = await call.control.subscriptions.change(
        call.caller, call.ref, call.body, call.if_match
    )
    return Answer(body=changed, revision=changed.subscription.revision)


async def delete_subscription(call: Call[NoQuery, NoBody]) -> Answer:
    await call.control.subscriptions.delete(call.caller, call.ref, call.if_match)
    return Answer()


async def list_deliveries(call: Call[DeliveryQuery, NoBody]) -> Answer:
    return Answer(body=await call.control.notifications.list(call.query))


async def get_delivery(call: Call[NoQuery, NoBody]) -> Answer:
    return Answer(body=await call.control.notifications.get(call.path["id"]))


async def retry_delivery(call: Call[NoQuery, NoBody]) -> Answer:
    return Answer(body=await call.control.notifications.retry(call.path["id"]))


ROUTES: tuple[Route, ...] = (
    Route(
        method="GET",
        path="/v1/receivers",
        role=VIEWER,
        summary="List receivers of notifications, with how their messages fare",
        handler=list_receivers,
        query=PageQuery,
        answer=Page[ReceiverView],
    ),
    Route(
        method="POST",
        path="/v1/receivers",
        role=ADMINISTRATOR,
        summary="Create a receiver; its secrets are never shown",
        handler=create_receiver,
        body=ReceiverCreate,
        answer=ReceiverView,
        status=201,
    ),
    Route(
        method="GET",
        path="/v1/receivers/{ref}",
        role=VIEWER,
        summary="Show a receiver",
        handler=get_receiver,
        answer=ReceiverView,
    ),
    Route(
        method="PATCH",
        path="/v1/receivers/{ref}",
        role=ADMINISTRATOR,
        summary="Change a receiver's settings or secrets, or switch it off",
        handler=change_receiver,
        body=ReceiverChange,
        answer=ReceiverView,
        conditional=True,
    ),
    Route(
        method="DELETE",
        path="/v1/receivers/{ref}",
        role=ADMINISTRATOR,
        summary="Remove a receiver that no subscription uses",
        handler=delete_receiver,
        status=204,
        conditional=True,
    ),
    Route(
        method="POST",
        path="/v1/receivers/{ref}/test",
        role=ADMINISTRATOR,
        summary="Send a test message now, and say how it fared",
        handler=test_receiver,
        body=ReceiverTest,
        answer=ReceiverTestView,
        errors=(Unavailable,),
    ),
    Route(
        method="GET",
        path="/v1/subscriptions",
        role=VIEWER,
        summary="List subscriptions",
        handler=list_subscriptions,
        query=PageQuery,
        answer=Page[SubscriptionView],
    ),
    Route(
        method="POST",
        path="/v1/subscriptions",
        role=ADMINISTRATOR,
        summary="Subscribe a user, an address or a receiver to events",
        handler=create_subscription,
        body=SubscriptionCreate,
        answer=SubscriptionView,
        status=201,
        errors=(NotFound,),
    ),
    Route(
        method="GET",
        path="/v1/subscriptions/{ref}",
        role=VIEWER,
        summary="Show a subscription",
        handler=get_subscription,
        answer=SubscriptionView,
    ),
    Route(
        method="PATCH",
        path="/v1/subscriptions/{ref}",
        role=ADMINISTRATOR,
        summary="Change a subscription, or switch it off",
        handler=change_subscription,
        body=SubscriptionChange,
        answer=SubscriptionView,
        conditional=True,
    ),
    Route(
        method="DELETE",
        path="/v1/subscriptions/{ref}",
        role=ADMINISTRATOR,
        summary="End a subscription; what still waits by it is dropped",
        handler=delete_subscription,
        status=204,
        conditional=True,
    ),
    Route(
        method="GET",
        path="/v1/deliveries",
        role=VIEWER,
        summary="List messages and what became of them, newest first",
        handler=list_deliveries,
        query=DeliveryQuery,
        answer=Page[DeliveryView],
        errors=(NotFound,),
    ),
    Route(
        method="GET",
        path="/v1/deliveries/{id}",
        role=VIEWER,
        summary="Show a message and its event",
        handler=get_delivery,
        answer=DeliveryView,
    ),
    Route(
        method="POST",
        path="/v1/deliveries/{id}/retry",
        role=ADMINISTRATOR,
        summary="Send a message again, now",
        handler=retry_delivery,
        answer=DeliveryView,
    ),
)
