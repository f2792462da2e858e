"""Nodes to XML and JSON and back, and what comes in that is none."""

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ovirtsdk4 import reader

from virtha.api.ovirt import json_codec, xml_codec
from virtha.api.ovirt.catalogue import SHAPES
from virtha.api.ovirt.parameters import read_parameters
from virtha.api.ovirt.shape import TURN, Scalar
from virtha.model.errors import InvalidInput

VM, ACTION = SHAPES["vm"], SHAPES["action"]
BASE = "/ovirt-engine/api"
TEXTS = st.text(
    st.characters(codec="utf-8", exclude_categories=("Cs", "Cc"), exclude_characters="\ufffe\uffff")
)
SCALARS = {
    Scalar.TEXT: TEXTS,
    Scalar.INTEGER: st.integers(-(1 << 63) + 1, (1 << 63) - 1),
    Scalar.DECIMAL: st.floats(allow_nan=False, allow_infinity=False),
    Scalar.BOOLEAN: st.booleans(),
}
"""Times are written and never read."""


def nodes(name: str, depth: int = 3) -> st.SearchStrategy[dict[str, Any]]:
    """Any node of that type, down to ``depth``."""
    shape = SHAPES[name]
    members: dict[str, st.SearchStrategy[Any]] = {"id": TEXTS.map(str.strip)}
    for field_name, field in shape.fields.items():
        of = shape.type_of(field_name)
        if of is Scalar.TIME or (not isinstance(of, Scalar) and depth == 0):
            continue
        one = SCALARS[of] if isinstance(of, Scalar) else nodes(of, depth - 1)
        members[field_name] = st.lists(one, max_size=2) if field.many else one
    chosen = st.sets(st.sampled_from(sorted(members)), max_size=4)
    return chosen.flatmap(lambda names: st.fixed_dictionaries({it: members[it] for it in names}))


@pytest.mark.parametrize("codec", [xml_codec, json_codec], ids=["xml", "json"])
@given(data=st.data())
def test_what_is_written_is_read_again(codec: Any, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(["vm", "watchdog", "agent", "action", "cluster", "nic"]))
    node = data.draw(nodes(name, 1))
    raw = codec.encode_one(SHAPES[name], node, BASE)
    assert codec.decode(raw, SHAPES[name]) == node


@given(
    raw=st.binary(max_size=300) | TEXTS.map(lambda text: f"<vm><name>{text}</name></vm>".encode())
)
def test_any_bytes_are_a_node_or_refused(raw: bytes) -> None:
    for codec in (xml_codec, json_codec):
        try:
            assert isinstance(codec.decode(raw, VM), dict)
        except InvalidInput as error:
            assert error.field


def test_links_and_actions_stand_where_the_stock_sdk_finds_them() -> None:
    node = {
        "id": "1",
        "href": "/vms/1",
        "link": [("watchdogs", "/vms/1/watchdogs")],
        "actions": ("start",),
        "name": 'a<b>&"c"',
        "description": "bell \x07 and nothing \x00 and \ud800 stay out",
        "memory": 1 << 40,
        "high_availability": {"enabled": True},
        "watchdogs": [{"id": "1", "action": "reset", "model": "i6300esb"}],
    }
    raw = b"".join(xml_codec.encode_many(VM, [node], BASE))
    (vm,) = reader.Reader.read(raw.decode())
    assert (vm.id, vm.href, vm.name) == ("1", f"{BASE}/vms/1", 'a<b>&"c"')
    assert vm.memory == 1 << 40 and vm.high_availability.enabled is True
    assert vm.watchdogs.href == f"{BASE}/vms/1/watchdogs" and len(vm.watchdogs) == 1
    assert vm.description == "bell � and nothing � and � stay out"
    assert f'<actions><link href="{BASE}/vms/1/start" rel="start"/></actions>' in raw.decode()
    raw = b"".join(json_codec.encode_many(VM, [{**node, "description": ""}], BASE))
    tree = msgspec.json.decode(raw)
    (told,) = tree["vm"]
    assert told["memory"] == str(1 << 40) and told["high_availability"] == {"enabled": "true"}
    assert told["watchdogs"] == {"watchdog": [{"id": "1", "action": "reset", "model": "i6300esb"}]}
    assert told["link"] == [{"rel": "watchdogs", "href": f"{BASE}/vms/1/watchdogs"}]
    assert told["actions"]["link"] == [{"rel": "start", "href": f"{BASE}/vms/1/start"}]


BOMB = (
    '<?xml version="1.0"?><!DOCTYPE vm [<!ENTITY a "aaaaaaaaaa">'
    + "".join(f'<!ENTITY {chr(98 + n)} "{f"&{chr(97 + n)};" * 10}">' for n in range(9))
    + "]><vm><name>&j;</name></vm>"
)
EXTERNAL = '<!DOCTYPE vm [<!ENTITY x SYSTEM "file:///etc/passwd">]><vm><name>&x;</name></vm>'


@pytest.mark.bad_input("XML bomb", "external entity", "XML nested too deeply")
@pytest.mark.parametrize(
    ("raw", "told"),
    [
        (BOMB, "document type"),
        (EXTERNAL, "document type"),
        ('<!DOCTYPE vm SYSTEM "http://127.0.0.1:9/x.dtd"><vm/>', "document type"),
        ("<vm>" + "<cluster>" * 100_000, "nested too deeply"),
        ("<vm>" + "<nic/>" * 30_000 + "</vm>", "too many elements"),
        ("<vm><name>x</vm>", "no XML"),
        ("<vm/><vm/>", "no XML"),
        ("<template/>", "<template>"),
        ("", "no XML"),
        ("\x00\x01", "no XML"),
        ('<?xml version="1.0" encoding="nonsense"?><vm/>', "no XML"),
        ("<vm>&nothing;</vm>", "no XML"),
    ],
)
def test_bodies_that_are_no_plain_xml_are_refused_at_once(raw: str, told: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        xml_codec.decode(raw.encode(), VM)
    assert refused.value.field == "body" and told in str(refused.value)


@pytest.mark.bad_input("wrong value in a body")
@pytest.mark.parametrize(
    ("raw", "field"),
    [
        ("<vm><memory>2GiB</memory></vm>", "vm.memory"),
        (f"<vm><memory>{1 << 64}</memory></vm>", "vm.memory"),
        ("<vm><memory>9999999999999999999999999</memory></vm>", "vm.memory"),
        ("<vm><memory/></vm>", "vm.memory"),
        (
            "<vm><high_availability><enabled>yes</enabled></high_availability></vm>",
            "vm.high_availability.enabled",
        ),
        ("<vm><cpu><topology><cores>1.5</cores></topology></cpu></vm>", "vm.cpu.topology.cores"),
        ("<vm><nics><nic><linked>2</linked></nic></nics></vm>", "vm.nics.nic.linked"),
    ],
)
def test_a_wrong_value_is_named_with_its_way(raw: str, field: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        xml_codec.decode(raw.encode(), VM)
    assert refused.value.field == field


@pytest.mark.parametrize(
    "raw", [b"[]", b"1", b"{", b'{"memory": []}', b'{"cpu": 1}', b"[" * 100_000, b'{"cpu":' * 5_000]
)
def test_json_that_is_no_node_is_refused(raw: bytes) -> None:
    with pytest.raises(InvalidInput):
        json_codec.decode(raw, VM)


def test_unknown_elements_are_ignored_as_ovirt_does() -> None:
    raw = b'<vm id="7" x="y"><nothing><deep/></nothing><name> a </name><nics><other/></nics></vm>'
    assert xml_codec.decode(raw, VM) == {"id": "7", "name": " a ", "nics": []}
    assert json_codec.decode(b'{"nothing": {"deep": 1}, "name": "a", "memory": 5}', VM) == {
        "name": "a",
        "memory": 5,
    }
    assert json_codec.decode(b'{"async": false}', ACTION) == {"async": False}


@pytest.mark.parametrize("count", [0, 1, TURN, TURN + 1, 3 * TURN])
def test_a_list_written_in_turns_is_one_document(count: int) -> None:
    nodes = [{"id": str(number), "name": f"web<{number}>"} for number in range(count)]
    parts = list(xml_codec.encode_many(VM, nodes, BASE))
    assert len(parts) == 2 + -(-count // TURN)
    read = reader.Reader.read(b"".join(parts).decode())
    assert [vm.name for vm in read] == [node["name"] for node in nodes]
    written = msgspec.json.decode(b"".join(json_codec.encode_many(VM, nodes, BASE)))
    assert written == {"vm": nodes}


# Parameters


@pytest.mark.bad_input("huge max")
def test_max_is_a_number_and_may_be_any() -> None:
    assert read_parameters([("max", str(1 << 62))]).max == 1 << 62
    assert read_parameters([("max", "-1")]).max is None
    assert read_parameters([("max", "0")]).max == 0
    for wrong in ("ten", "9" * 40, "", "1e3", "٣"):
        with pytest.raises(InvalidInput) as refused:
            read_parameters([("max", wrong)])
        assert refused.value.field == "max"
    for name, text in (("search", "x" * 5_000), ("async", "maybe"), ("case_sensitive", "2")):
        with pytest.raises(InvalidInput) as refused:
            read_parameters([(name, text)])
        assert refused.value.field == name
