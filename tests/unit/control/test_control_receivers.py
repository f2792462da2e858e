"""Secrets at rest, and the settings and addresses that are refused."""

from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from virtha.control.receiver_checks import check_address, check_secrets, check_settings
from virtha.control.requests import ReceiverChange, ReceiverCreate
from virtha.control.secret_box import KEY_BYTES, KeyBox, NoKeyBox
from virtha.control.views import Caller
from virtha.model.errors import Failed, InvalidInput
from virtha.model.notification import (
    AlertmanagerSettings,
    MailSecurity,
    MailSettings,
    ReceiverStatus,
    SnmpAuthentication,
    SnmpPrivacy,
    SnmpSettings,
    SnmpVersion,
    WebhookSettings,
)
from virtha.model.time import UtcMillis
from virtha.model.user import Role
from virtha.store.notifications import find_receiver, save_receiver_status

Tell = Callable[[Any], None]
ADMIN = Caller(name="admin", role=Role.ADMINISTRATOR)
KEY = bytes(range(KEY_BYTES))


@given(secrets=st.dictionaries(st.text(max_size=20), st.text(max_size=200), max_size=4))
def test_what_was_sealed_comes_back_for_its_record_only(secrets: dict[str, str]) -> None:
    box = KeyBox(KEY, where="secrets.key")
    sealed = box.seal(secrets, of="r1")
    assert box.open(sealed, of="r1") == secrets
    assert box.seal(secrets, of="r1") != sealed, "never twice the same"
    with pytest.raises(Failed):
        box.open(sealed, of="r2")


@pytest.mark.bad_input("lost secrets key")
def test_another_key_or_none_or_damage_is_told_and_says_nothing_secret() -> None:
    box = KeyBox(KEY, where="/state/secrets.key")
    sealed = box.seal({"password": "hush-hush"}, of="r1")
    assert "hush" not in sealed and "hush" not in repr(box)
    other = KeyBox(KEY[::-1], where="/state/secrets.key")
    damaged = sealed[:-6] + ("AAAAA=" if not sealed.endswith("AAAAA=") else "BBBBB=")
    for opener, text, says in (
        (other, sealed, "another key than /state/secrets.key holds"),
        (box, damaged, "damaged"),
        (box, "2" + sealed[1:], "newer version"),
        (box, "", "newer version"),
        (
            NoKeyBox(Failed("there is no /state/secrets.key", fix="restore it")),
            sealed,
            "there is no",
        ),
        (NoKeyBox(), sealed, "no key"),
    ):
        with pytest.raises(Failed) as told:
            opener.open(text, of="r1")
        assert says in told.value.message and told.value.fix
        assert "hush" not in str(told.value)


GOOD_ADDRESSES = (
    "a@b",
    "operators@example.org",
    "first.last+tag@mail.example.org",
    "käthe@bücher.example",
    "ops@[192.0.2.1]",
    "ops@[IPv6:2001:db8::1]",
)
BAD_ADDRESSES = (
    *("", "nobody", "@example.org", "a@", "a b@example.org", "a@b@example.org", "a@exa mple.org"),
    *("a..b@example.org", ".a@example.org", '"quoted"@example.org', "Ops <a@example.org>"),
    *("a@example.org,b@example.org", "a@-example.org", "x" * 65 + "@example.org"),
    *("a@example.org\n", "a@example.org\r\nBcc: b@example.org", "a\0@example.org"),
    *("a@example.org\u2028", "\u202ea@example.org", "x@" + "y" * 254, "a@[nowhere]"),
)


@pytest.mark.parametrize("address", GOOD_ADDRESSES)
def test_good_addresses(address: str) -> None:
    assert check_address(address, field="address") == address


@pytest.mark.bad_input("address with a line break")
@pytest.mark.parametrize("address", BAD_ADDRESSES, ids=repr)
def test_bad_addresses(address: str) -> None:
    with pytest.raises(InvalidInput) as wrong:
        check_address(address, field="address")
    assert wrong.value.field == "address"
    assert wrong.value.fix or wrong.value.allowed
    assert "\n" not in str(wrong.value) and "\r" not in str(wrong.value)


@given(text=st.text(max_size=300))
def test_no_accepted_address_can_break_a_header(text: str) -> None:
    try:
        check_address(text, field="address")
    except InvalidInput:
        return
    assert text.isprintable() and " " not in text and "," not in text and "<" not in text


V3 = {"host": "nms.example.org", "user": "virtha"}
BAD_SETTINGS: list[tuple[Any, str]] = [
    (MailSettings(host="", sender="a@b"), "settings.host"),
    (MailSettings(host="mail:25", sender="a@b"), "settings.host"),
    (MailSettings(host="mail\n", sender="a@b"), "settings.host"),
    (MailSettings(host="m", port=0, sender="a@b"), "settings.port"),
    (MailSettings(host="m", port=70_000, sender="a@b"), "settings.port"),
    (MailSettings(host="m", sender="nobody"), "settings.sender"),
    (MailSettings(host="m", sender="a@b", reply_to="x\ny@b"), "settings.reply_to"),
    (MailSettings(host="m", sender="a@b", user=""), "settings.user"),
    (MailSettings(host="m", sender="a@b", user="u\nv"), "settings.user"),
    (
        MailSettings(host="m", sender="a@b", user="u", security=MailSecurity.NONE),
        "settings.security",
    ),
    (MailSettings(host="m", sender="a@b", authority_pem="no"), "settings.authority_pem"),
    (SnmpSettings(host="n"), "settings.user"),
    (SnmpSettings(host="n", version=SnmpVersion.V2C, user="u"), "settings.user"),
    (SnmpSettings(host="n", user="u" * 33), "settings.user"),
    (SnmpSettings(**V3, authentication=SnmpAuthentication.NONE), "settings.authentication"),
    (SnmpSettings(**V3, engine_id="80"), "settings.engine_id"),
    (SnmpSettings(**V3, engine_id="xyz0000000"), "settings.engine_id"),
    (WebhookSettings(url="ftp://example.org/"), "settings.url"),
    (WebhookSettings(url="example.org"), "settings.url"),
    (WebhookSettings(url="https://"), "settings.url"),
    (WebhookSettings(url="https://u:p@example.org/"), "settings.url"),
    (WebhookSettings(url="htps://u:p@example.org/"), "settings.url"),
    (WebhookSettings(url="https:u:p@example.org"), "settings.url"),
    (WebhookSettings(url="https://u:p@[example.org/"), "settings.url"),
    (AlertmanagerSettings(url="https://u:p@example.org/"), "settings.url"),
    (WebhookSettings(url="https://example.org:0/"), "settings.url"),
    (WebhookSettings(url="https://example.org:70000/"), "settings.url"),
    (WebhookSettings(url="https://example.org/a b"), "settings.url"),
    (WebhookSettings(url="https://example.org/#here"), "settings.url"),
    (WebhookSettings(url="https://example.org/" + "x" * 2_000), "settings.url"),
    (WebhookSettings(url="http://127.0.0.1/"), "settings.url"),
    (WebhookSettings(url="http://localhost/"), "settings.url"),
    (WebhookSettings(url="http://[::1]/"), "settings.url"),
    (WebhookSettings(url="http://[::ffff:127.0.0.1]/"), "settings.url"),
    (WebhookSettings(url="http://169.254.169.254/latest"), "settings.url"),
    (WebhookSettings(url="http://10.0.0.1/"), "settings.url"),
]


@pytest.mark.parametrize(("settings", "field"), BAD_SETTINGS, ids=lambda value: str(value)[:60])
def test_bad_settings_name_the_field(settings: Any, field: str) -> None:
    with pytest.raises(InvalidInput) as wrong:
        check_settings(settings)
    assert wrong.value.field == field
    assert wrong.value.fix or wrong.value.allowed
    assert ":p@" not in str(wrong.value), "a password in a URL is not repeated"
    if isinstance(settings, AlertmanagerSettings):
        assert "secret password" in (wrong.value.fix or ""), "it signs no body"


def test_good_settings() -> None:
    for settings in (
        MailSettings(host="2001:db8::1", sender="virtha@example.org", user="u"),
        MailSettings(host="localhost", port=25, sender="a@b", security=MailSecurity.NONE),
        SnmpSettings(**V3, engine_id="8000000001020304"),
        SnmpSettings(host="192.0.2.1", version=SnmpVersion.V2C),
        WebhookSettings(url="https://hooks.example.org/a?b=c"),
        WebhookSettings(url="http://127.0.0.1:8080/", private_addresses=True),
    ):
        check_settings(settings)


BAD_SECRETS: list[tuple[Any, dict[str, str], str]] = [
    (MailSettings(host="m", sender="a@b", user="u"), {}, "secrets.password"),
    (MailSettings(host="m", sender="a@b"), {"password": "pass-word"}, "secrets.password"),
    (MailSettings(host="m", sender="a@b", user="u"), {"password": ""}, "secrets.password"),
    (MailSettings(host="m", sender="a@b", user="u"), {"password": "a\nb"}, "secrets.password"),
    (MailSettings(host="m", sender="a@b"), {"passwort": "pass-word"}, "secrets.passwort"),
    (AlertmanagerSettings(url="https://a.example.org"), {"token": "t\u00f8ken"}, "secrets.token"),
    (SnmpSettings(host="n", version=SnmpVersion.V2C), {}, "secrets.community"),
    (SnmpSettings(**V3), {"privacy_password": "longenough"}, "secrets.authentication_password"),
    (
        SnmpSettings(**V3),
        {"authentication_password": "hushes", "privacy_password": "longenough"},
        "secrets.authentication_password",
    ),
    (
        SnmpSettings(**V3, privacy=SnmpPrivacy.NONE),
        {"authentication_password": "longenough", "privacy_password": "longenough"},
        "secrets.privacy_password",
    ),
]


@pytest.mark.parametrize(("settings", "secrets", "field"), BAD_SECRETS)
def test_bad_secrets_name_the_field_and_not_the_secret(
    settings: Any, secrets: dict[str, str], field: str
) -> None:
    with pytest.raises(InvalidInput) as wrong:
        check_secrets(settings, secrets)
    assert wrong.value.field == field
    assert not [one for one in secrets.values() if one and one in str(wrong.value)]


@pytest.mark.bad_input("lost secrets key")
def test_without_a_key_all_that_needs_no_secret_goes_on(tell: Tell) -> None:
    """The world of these tests has none."""

    async def story(world: Any) -> None:
        receivers = world.control.receivers
        mail = MailSettings(host="m.example.org", sender="a@example.org")
        await receivers.create(ADMIN, ReceiverCreate(name="plain", settings=mail))
        with_user = MailSettings(host="m.example.org", sender="a@example.org", user="u")
        request = ReceiverCreate(name="m", settings=with_user, secrets={"password": "hush-hush"})
        with pytest.raises(Failed) as told:
            await receivers.create(ADMIN, request)
        assert "secrets.key" in told.value.fix
        assert [one.receiver.name for one in await everyone(receivers)] == ["plain"]
        await receivers.check_secrets_readable()
        assert await world.events("notify.secrets_unreadable") == []

    tell(story)


async def everyone(receivers: Any) -> tuple[Any, ...]:
    from virtha.control.requests import PageQuery

    found: tuple[Any, ...] = (await receivers.list(PageQuery())).items
    return found


@pytest.mark.bad_input("lost secrets key")
def test_with_another_key_it_is_told_and_secrets_can_be_given_anew(tell: Tell) -> None:
    async def story(world: Any) -> None:
        receivers = world.control.receivers
        receivers._box = KeyBox(KEY, where="secrets.key")
        with_user = MailSettings(host="m.example.org", sender="a@example.org", user="u")
        await receivers.create(
            ADMIN, ReceiverCreate(name="m", settings=with_user, secrets={"password": "hush-hush"})
        )
        receivers._box = KeyBox(KEY[::-1], where="secrets.key")
        await receivers.check_secrets_readable()
        (told,) = await world.events("notify.secrets_unreadable")
        assert "another key" in told.fields["detail"]
        await receivers.change(ADMIN, "m", ReceiverChange(enabled=True))  # needs no secret
        await receivers.change(ADMIN, "m", ReceiverChange(secrets={"password": "hush-anew"}))
        async with world.store.read() as tx:
            row = await find_receiver(tx, "m")
        assert row is not None and receivers.opened(row) == {"password": "hush-anew"}

    tell(story)


ALERTMANAGER = AlertmanagerSettings(url="https://am.example.org:9093/prefix")


def changed(**changes: Any) -> AlertmanagerSettings:
    return msgspec.structs.replace(ALERTMANAGER, **changes)


@pytest.mark.parametrize(
    ("settings", "secrets", "field"),
    [
        (ALERTMANAGER, {}, None),
        (ALERTMANAGER, {"token": "t"}, None),
        (changed(user="eve"), {"password": "p"}, None),
        (changed(url="http://192.0.2.9:9093", private_addresses=True), {}, None),
        (changed(url="https://am.example.org/api/v2/alerts"), {}, "settings.url"),
        (changed(url="https://am.example.org/?x=y"), {}, "settings.url"),
        (changed(url="ftp://am.example.org"), {}, "settings.url"),
        (changed(url="http://127.0.0.1:9093"), {}, "settings.url"),
        (changed(url="http://am.example.org:9093"), {"token": "t"}, "settings.url"),
        (changed(user="eve"), {}, "secrets.password"),
        (changed(user="e:ve"), {"password": "p"}, "settings.user"),
        (changed(user="eve"), {"password": "p", "token": "t"}, "secrets.token"),
        (ALERTMANAGER, {"password": "p"}, "secrets.password"),
        (ALERTMANAGER, {"secret": "s"}, "secrets.secret"),
        (changed(resolve_after_ms=1), {}, "settings.resolve_after_ms"),
    ],
)
def test_alertmanagers(
    settings: AlertmanagerSettings, secrets: dict[str, str], field: str | None
) -> None:
    if field is None:
        check_settings(settings)
        return check_secrets(settings, secrets)
    with pytest.raises(InvalidInput) as wrong:
        check_settings(settings)
        check_secrets(settings, secrets)
    assert wrong.value.field == field and (wrong.value.fix or wrong.value.allowed)
    return None


@pytest.mark.req("W7", "F4")
def test_a_receiver_that_was_changed_while_it_was_away_is_told_away_anew(tell: Tell) -> None:
    """Routes take the change for the end of its absence: it may be mended, or switched off for good."""

    async def story(world: Any) -> None:
        mail = MailSettings(host="m.example.org", sender="a@example.org")
        made = await world.control.receivers.create(
            ADMIN, ReceiverCreate(name="plain", settings=mail)
        )
        away = ReceiverStatus(away_since=UtcMillis(1), away_told=True)
        async with world.store.write() as tx:
            await save_receiver_status(tx, made.receiver.id, away)
        view = await world.control.receivers.change(ADMIN, "plain", ReceiverChange(enabled=False))
        assert (view.status.away_since, view.status.away_told) == (1, False)

    tell(story)
