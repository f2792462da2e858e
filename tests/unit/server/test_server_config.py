"""server.toml: unknown keys with the nearest name, overrides, addresses."""

from pathlib import Path

import pytest

from virtha.model.errors import InvalidInput, NotFound
from virtha.server.config import (
    ServerConfig,
    ServerPaths,
    build_config,
    config_text,
    overrides,
    read_config,
    split_address,
)


@pytest.fixture
def paths(tmp_path: Path) -> ServerPaths:
    paths = ServerPaths(tmp_path)
    paths.config.parent.mkdir(parents=True)
    return paths


def test_what_init_writes_is_read_back_the_same(paths: ServerPaths) -> None:
    config = ServerConfig(
        listen="[::1]:0",
        gateway_listen="127.0.0.1:8250",
        names=("virtha.example.org", "192.0.2.1", 'quo"te'),
        origins=("https://ha.example.org", "http://[::1]:8080"),
        proxies=("192.0.2.10", "2001:db8::/64"),
        reference_addresses=("192.0.2.1:443", "[2001:db8::1]:22", "gw.example.org:65535"),
        log_level="debug",
        database="sqlite:////srv/v.db",
    )
    paths.config.write_text(config_text(config))
    assert read_config(paths, {}) == config


def test_every_path_moves_with_the_root(tmp_path: Path) -> None:
    paths = ServerPaths(tmp_path)
    own = [value for value in vars(paths).values() if isinstance(value, Path)]
    assert len(own) > 8
    assert all(value.is_relative_to(tmp_path) for value in own)
    assert (
        paths.database_url(ServerConfig())
        == f"sqlite:///{tmp_path}/var/lib/virtha/server/virtha.db"
    )


def test_the_environment_overrides_the_file(paths: ServerPaths) -> None:
    paths.config.write_text('listen = "127.0.0.1:1"\nnames = ["a"]\n')
    config = read_config(paths, {"VIRTHA_LISTEN": "127.0.0.1:2", "VIRTHA_NAMES": "b, c,"})
    several = {"VIRTHA_ORIGINS": "https://a, https://b:1"}
    assert read_config(paths, several).origins == ("https://a", "https://b:1")
    assert read_config(paths, {"VIRTHA_PROXIES": "::1, 10.0.0.0/8"}).proxies == (
        "::1",
        "10.0.0.0/8",
    )
    addresses = {"VIRTHA_REFERENCE_ADDRESSES": "192.0.2.1:443, [2001:db8::1]:22"}
    assert read_config(paths, addresses).reference_addresses == (
        "192.0.2.1:443",
        "[2001:db8::1]:22",
    )
    assert (config.listen, config.names) == ("127.0.0.1:2", ("b", "c"))
    assert overrides({"VIRTHA_ROOT": "/x", "LISTEN": "no"}) == {}


def test_no_file_says_how_to_make_one(paths: ServerPaths) -> None:
    with pytest.raises(NotFound) as caught:
        read_config(paths, {})
    assert "virtha server init" in caught.value.fix


@pytest.mark.parametrize(
    ("text", "field", "fix"),
    [
        ('listn = "127.0.0.1:1"', "listn", "did you mean listen?"),
        ("zzz = 1", "zzz", "remove it"),
        ("listen = 8443", "listen", 'write listen = "…"'),
        ('listen = "8443"', "listen", "write for example 0.0.0.0:8443 or [::]:8443"),
        ('listen = "h:99999"', "listen", "write for example 0.0.0.0:8443 or [::]:8443"),
        ('log_level = "loud"', "log_level", ""),
        ('names = "a"', "names", 'write names = ["server1", "192.0.2.1"]'),
        ("names = [1]", "names", 'write names = ["server1", "192.0.2.1"]'),
        ('origins = "https://a"', "origins", 'write origins = ["https://ha.example.org"]'),
        *(
            (f'origins = ["{one}"]', "origins", 'write origins = ["https://ha.example.org"]')
            for one in (
                *("", "*", "null", "ha.example.org", "https://", "ftp://a", "https://a/"),
                *("https://a/ui", "https://A", "https://u@a", "https://a:x", "https://[a", "//a"),
            )
        ),
        (
            'reference_addresses = "192.0.2.1:443"',
            "reference_addresses",
            'write reference_addresses = ["192.0.2.1:443", "[2001:db8::1]:22"]',
        ),
        ('proxies = "10.0.0.1"', "proxies", 'write proxies = ["192.0.2.10"]'),
        *(
            (f'proxies = ["{one}"]', "proxies", 'write proxies = ["192.0.2.10"]')
            for one in ("", "*", "proxy.example.org", "10.0.0.1:80", "10.0.0.1/8", "0.0.0.0/0")
        ),
        (
            'listen = "127.0.0.1:1',
            "server.toml",
            'write KEY = "VALUE", one a line, and a # before a remark',
        ),
        (
            'listen = "[::]:8443"\ngateway_listen = "[::]:8443"',
            "gateway_listen",
            "give each a port of its own: 8443 and 8250 by default",
        ),
    ],
)
def test_a_wrong_file_names_the_key(paths: ServerPaths, text: str, field: str, fix: str) -> None:
    paths.config.write_text(text)
    with pytest.raises(InvalidInput) as caught:
        read_config(paths, {})
    assert (caught.value.field, caught.value.fix) == (field, fix)


@pytest.mark.req("J4")
@pytest.mark.parametrize(
    "text",
    [
        *("192.0.2.1:443", "[2001:db8::1]:22", "[fe80::1%eth0]:22", "192.0.2.1:1"),
        *("gw:443", "gw.example.org:65535", "gw.example.org.:443", "3com:80", "127.example.org:80"),
    ],
)
def test_a_reference_address_is_another_machines(text: str) -> None:
    assert ServerConfig(reference_addresses=(text,)).reference_addresses == (text,)


@pytest.mark.req("J4")
@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("text", "why"),
    [
        *(
            (text, "it is not HOST:PORT")
            for text in (
                *(
                    "",
                    "192.0.2.1",
                    "gw.example.org",
                    "gw:",
                    ":443",
                    "gw:https",
                    "gw:-1",
                    "gw:65536",
                ),
                *("2001:db8::1:22", "[2001:db8::1]", "gw:443:", "gw:٣", "https://gw:443"),
                "gw:" + "4" * 5_000,
            )
        ),
        ("192.0.2.1:0", "port 0 is none"),
        *(
            (text, "it names no host")
            for text in (
                *("user@gw:443", "gw/24:443", "g w:443", "*:443", "gw..org:443"),
                *(
                    "192.0.2:443",
                    "192.0.2.256:443",
                    "127.1:443",
                    "0x7f000001:443",
                    "2130706433:443",
                ),
                *("[gw]]:443", "-" * 64 + ":443", "a." * 127 + "org:443"),
            )
        ),
        *(
            (text, "that is this machine itself")
            for text in (
                *("127.0.0.1:443", "127.8.9.10:443", "[::1]:443", "[::ffff:127.0.0.1]:443"),
                *(
                    "localhost:443",
                    "LocalHost.:443",
                    "gw.localhost:443",
                    "localhost.localdomain:22",
                ),
            )
        ),
        *(
            (text, "that is no one machine")
            for text in (
                *("0.0.0.0:443", "[::]:443", "[::ffff:0.0.0.0]:443", "224.0.0.1:443"),
                *("[ff02::1]:443", "255.255.255.255:443"),
            )
        ),
    ],
)
def test_what_is_no_reference_address_is_refused_beside_one_that_is(
    paths: ServerPaths, text: str, why: str
) -> None:
    paths.config.write_text(f'reference_addresses = ["192.0.2.1:443", "{text}"]\n')
    with pytest.raises(InvalidInput) as caught:
        read_config(paths, {})
    assert (caught.value.field, caught.value.fix) == (
        "reference_addresses",
        'write reference_addresses = ["192.0.2.1:443", "[2001:db8::1]:22"]',
    )
    assert caught.value.message == f"'{text[:200]}' is no reference address: {why}"


def test_a_file_that_is_no_text(paths: ServerPaths) -> None:
    paths.config.write_bytes(b"# gr\xf6\xdfe\n")
    with pytest.raises(InvalidInput, match="is not UTF-8 text") as caught:
        read_config(paths, {})
    assert (caught.value.field, caught.value.fix) == ("server.toml", "save it as UTF-8")


def test_an_unknown_key_lists_the_known_ones() -> None:
    with pytest.raises(InvalidInput) as caught:
        build_config({"nope": 1}, where="server.toml")
    assert "gateway_listen" in caught.value.allowed
    assert caught.value.code == "problem.unknown_field"


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("127.0.0.1:0", ("127.0.0.1", 0)),
        ("[::]:8443", ("::", 8443)),
        ("virtha.example.org:65535", ("virtha.example.org", 65_535)),
    ],
)
def test_addresses(text: str, parts: tuple[str, int]) -> None:
    assert split_address(text, field="listen") == parts


@pytest.mark.parametrize(
    "text", ["", ":8443", "host", "host:", "host:-1", "::1:80", "h:1:2", "h:٣"]
)
def test_bad_addresses(text: str) -> None:
    with pytest.raises(InvalidInput):
        split_address(text, field="listen")
