"""The façade's descriptions of oVirt's types, held against those of the stock SDK."""

import inspect
import re

import pytest
from ovirtsdk4 import reader, readers, types

from virtha.api.ovirt.catalogue import SHAPES
from virtha.api.ovirt.shape import Scalar, Shape
from virtha.api.ovirt.table import ROUTES

READ = {
    Scalar.TEXT: ("read_string", "read_enum"),
    Scalar.INTEGER: ("read_integer",),
    Scalar.DECIMAL: ("read_decimal",),
    Scalar.BOOLEAN: ("read_boolean",),
    Scalar.TIME: ("read_date",),
}
CALLED = {
    "os": "OperatingSystem",
    "topology": "CpuTopology",
    "placement_policy": "VmPlacementPolicy",
    "skip_if_connectivity_broken": "SkipIfConnectivityBroken",
    "lease": "StorageDomainLease",
    "storage": "HostStorage",
    "vm_numa_node": "VirtualNumaNode",
    "operating_system": "OperatingSystemInfo",
}
"""Types whose name in the SDK is not that of their element."""
OURS = {"capabilities"}
"""Of oVirt's version 3, as the source document has it (W4): version 4, and so the SDK, knows none."""
OUR_FIELDS = {
    ("vm", "watchdog"),
    ("template", "watchdog"),
    ("vm", "numa_nodes"),
    ("host", "libvirt_version"),
}
"""The source document's element; the SDK reads ``host_numa_nodes`` for the other."""


def reader_of(shape: Shape) -> str:
    name = CALLED.get(shape.name) or "".join(part.title() for part in shape.name.split("_"))
    assert hasattr(types, name), f"{shape.name}: the SDK has no type {name}"
    return inspect.getsource(getattr(readers, f"{name}Reader").read_one)


@pytest.mark.req("W3")
@pytest.mark.parametrize(
    "shape", [one for one in SHAPES.values() if one.name not in OURS], ids=lambda one: one.name
)
def test_each_field_is_one_that_the_stock_sdk_reads_as_that(shape: Shape) -> None:
    source = reader_of(shape)
    general = {"name", "description", "comment"}
    wrong = []
    for name, field in shape.fields.items():
        if (shape.name, name) in OUR_FIELDS:
            continue
        found = re.search(rf"tag == '{name}':\n\s+(.*)\n", source)
        if found is None:
            if name not in general:
                wrong.append(f"{name}: the SDK does not read it")
            continue
        of, how = shape.type_of(name), found[1]
        if isinstance(of, Scalar) and not field.many and not any(one in how for one in READ[of]):
            wrong.append(f"{name}: {how}")
        if not isinstance(of, Scalar) and ("read_many" if field.many else "read_one") not in how:
            wrong.append(f"{name}: {how}")
    assert wrong == []


def test_every_type_that_a_field_names_is_described() -> None:
    lost = [
        f"{shape.name}.{name}"
        for shape in SHAPES.values()
        for name in shape.fields
        if not isinstance(shape.type_of(name), Scalar) and shape.type_of(name) not in SHAPES
    ]
    assert lost == []
    assert {route.reads for route in ROUTES if route.reads} <= set(SHAPES)


def test_the_stock_sdk_knows_what_the_collections_are_called() -> None:
    """Types that stand only inside of others need no name of their own there."""
    inside = {"bios", "topology", "lease", "os", "placement_policy", "storage", "usb", "sso", "io"}
    known = reader.Reader._readers
    lost = [
        tag
        for shape in SHAPES.values()
        for tag in (shape.name, shape.plural)
        if tag and tag not in known and shape.name not in inside | OURS
    ]
    assert lost == []
