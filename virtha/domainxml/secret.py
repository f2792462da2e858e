"""A key that libvirt keeps for the disks of Ceph pools."""

from xml.etree.ElementTree import tostring

from virtha.domainxml.elements import add, make


def ceph_secret(secret_id: str, name: str) -> str:
    """Private: no client reads it. Not ephemeral: a VM is restarted, or moved here, right after libvirt was."""
    secret = make("secret", {"ephemeral": "no", "private": "yes"})
    add(secret, "uuid", text=secret_id)
    add(secret, "description", text="virtha: a Ceph pool's key")
    usage = add(secret, "usage", {"type": "ceph"})
    add(usage, "name", text=name)
    return tostring(secret, encoding="unicode")
