"""Settings: which there are, where they are set, changing them."""

from virtha.control.history import record
from virtha.control.known_settings import KNOWN_SETTINGS, KnownSetting, known_setting
from virtha.control.names import check_revision, the_cluster, the_host
from virtha.control.requests import SettingPut
from virtha.control.views import Caller, SettingView
from virtha.model.errors import InvalidInput, NotFound
from virtha.model.ids import Revision
from virtha.model.user import Setting, SettingScope
from virtha.store.installations import all_settings, drop_setting, put_setting
from virtha.store.store import Store, Transaction


class Settings:
    def __init__(self, store: Store) -> None:
        self._store = store

    async def list(self) -> tuple[SettingView, ...]:
        """Each known setting at the global scope, and each narrower value there is."""
        async with self._store.read() as tx:
            stored = {(one.key, one.scope, one.subject): one for one in await all_settings(tx)}
        views = []
        for key, known in sorted(KNOWN_SETTINGS.items()):
            views.append(_view(known, stored.get((key, SettingScope.GLOBAL, ""))))
            views += [
                _view(known, one)
                for (of, scope, _), one in sorted(stored.items())
                if of == key and scope is not SettingScope.GLOBAL
            ]
        return tuple(views)

    async def put(
        self,
        caller: Caller,
        key: str,
        request: SettingPut,
        *,
        scope: SettingScope = SettingScope.GLOBAL,
        subject: str | None = None,
        if_match: Revision | None = None,
    ) -> SettingView:
        """``if_match``: that of the setting at this scope, 0 where it is not set."""
        known = known_setting(key)
        value = known.show(known.parse(request.value))
        async with self._store.write() as tx:
            subject_id = await _subject(tx, known, scope, subject)
            check_revision(if_match, await _revision(tx, key, scope, subject_id))
            setting = Setting(key=key, scope=scope, subject=subject_id, value=value)
            before = await _value(tx, key, scope, subject_id)
            await put_setting(tx, setting)
            await record(
                tx,
                "setting.changed",
                by=caller.name,
                key=key,
                scope=scope.value,
                value=value,
                before=before,
                after=value,
                subject=subject or "",
            )
            return _view(
                known,
                Setting(
                    key=key, scope=scope, subject=subject_id, value=value, revision=tx.revision
                ),
            )

    async def delete(
        self,
        caller: Caller,
        key: str,
        *,
        scope: SettingScope = SettingScope.GLOBAL,
        subject: str | None = None,
        if_match: Revision | None = None,
    ) -> None:
        """Back to the wider scope's value, or the default."""
        known = known_setting(key)
        async with self._store.write() as tx:
            subject_id = await _subject(tx, known, scope, subject)
            before = await _value(tx, key, scope, subject_id)
            check_revision(if_match, await _revision(tx, key, scope, subject_id))
            if not await drop_setting(tx, key, scope, subject_id):
                raise NotFound(f"{key} is not set there", field="key")
            await record(
                tx,
                "setting.changed",
                by=caller.name,
                key=key,
                scope=scope.value,
                value="default",
                before=before,
                after="default",
                subject=subject or "",
            )


async def _revision(tx: Transaction, key: str, scope: SettingScope, subject: str) -> Revision:
    wanted = (key, scope, subject)
    found = (one for one in await all_settings(tx) if (one.key, one.scope, one.subject) == wanted)
    return next((one.revision for one in found), Revision(0))


async def _subject(
    tx: Transaction, known: KnownSetting, scope: SettingScope, subject: str | None
) -> str:
    """The id that a value at that scope belongs to."""
    if scope not in known.scopes:
        raise InvalidInput(
            f"{known.key} can't be set per {scope.value}",
            field="scope",
            allowed=tuple(one.value for one in known.scopes),
        )
    if scope is SettingScope.GLOBAL:
        if subject:
            raise InvalidInput("a global setting has no subject", field="subject")
        return ""
    if not subject:
        raise InvalidInput("is missing", field="subject", fix=f"name the {scope.value}")
    if scope is SettingScope.CLUSTER:
        return (await the_cluster(tx, subject, field="subject")).id
    return (await the_host(tx, subject, field="subject")).host.id


def _view(known: KnownSetting, stored: Setting | None) -> SettingView:
    shown = stored or Setting(key=known.key, scope=SettingScope.GLOBAL, value="")
    return SettingView(
        key=known.key,
        scope=shown.scope,
        subject=shown.subject,
        value=stored.value if stored is not None else None,
        default=known.show(known.default),
        help=known.help,
        allowed=known.allowed,
        revision=shown.revision,
    )


async def _value(tx: Transaction, key: str, scope: SettingScope, subject: str) -> str:
    """What is set there now."""
    for one in await all_settings(tx):
        if (one.key, one.scope, one.subject) == (key, scope, subject):
            return one.value
    return "default"
