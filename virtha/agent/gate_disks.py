# ruff: noqa: PTH115, PTH116, PTH118, PTH119, PTH123, PTH208
# (as gate_hook.py, into whose installed file this is put: the standard library alone, and nothing that a storage can hold up)
"""How a domain names images of Ceph: in its XML, in QEMU's own arguments, as block devices, by libvirt's storage pools.

An image is written as a path, ``/rbd:pool:namespace/image``, below what a managed pool is on record as. What may be an image and
does not say which one is unclear, and the gate refuses that where a pool is managed.
"""

import json
import os
import re
import stat
from xml.parsers import expat

DEPTH_MAX = 200
SYS = "/sys"
LIBVIRT_POOLS = ("/run/libvirt/storage", "/etc/libvirt/storage")
POOL_BYTES_MAX = 65_536
DEVICE_DEPTH_MAX = 10
DEVICES_MAX = 256
RBD_DRIVER = re.compile(r"\b(?:driver|format)\s*=\s*rbd\b", re.IGNORECASE)
RBD_OPTIONS = tuple(
    re.compile(rf"(?:^|[,.]){name}=((?:[^,]|,,)+)") for name in ("pool", "namespace", "image")
)
RBD_DEVICE = re.compile(r"rbd([0-9]+)(?:p[0-9]+)?")


def read_file(path: str, bytes_max: int) -> bytes:
    with open(path, "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise ValueError("not a regular file")
        data = file.read(bytes_max + 1)
    if len(data) > bytes_max:
        raise ValueError(f"larger than {bytes_max} bytes")
    return data


def no_doctype(*_arguments: object) -> None:
    # libvirt never writes one; entities are how a small XML becomes a gigabyte.
    raise ValueError("a document type is not allowed")


def image_path(name: str) -> str:
    """An image of Ceph, ``pool/image`` or ``pool/namespace/image``, as a path below ``/rbd:pool:namespace``."""
    pool, _, rest = name.partition("/")
    namespace, _, image = rest.rpartition("/")
    return f"/rbd:{pool}:{namespace}/{image}"


def images_in(value: str, depth: int = 0) -> tuple[list[str], list[str]]:
    """(paths, what is unclear) of one argument of QEMU's. Raises ValueError where it is nested beyond all bounds."""
    if depth > DEPTH_MAX:
        raise ValueError("JSON is nested too deep")
    if value.lstrip("-") == "readconfig":
        return [], ["a file of QEMU's options"]
    images: list[str] = []
    unclear: list[str] = []
    data = _json_in(value)
    if data is not None:
        images, unclear = _images_in_json(data, depth)
    elif RBD_DRIVER.search(value):
        images, unclear = _image_of_driver(value)
    for image in value.split("rbd:")[1:]:  # file=rbd:pool/image:id=…
        images.append(image_path(image.split(":")[0].split(",")[0]))
    return images, unclear


def _image_of_driver(value: str) -> tuple[list[str], list[str]]:
    """driver=rbd,pool=vms,image=web1, each perhaps behind ``file.``; two in one argument are not told apart."""
    pools, namespaces, images = (
        [one.replace(",,", ",") for one in option.findall(value)] for option in RBD_OPTIONS
    )
    if len(pools) != 1 or len(images) != 1 or len(namespaces) > 1:
        return [], ["an image of Ceph's in QEMU's own arguments"]
    return [image_path("/".join([*pools, *namespaces, *images]))], []


def _images_in_json(data: object, depth: int) -> tuple[list[str], list[str]]:
    if isinstance(data, str):
        images, unclear = images_in(data, depth + 1)
        # Of text alone it would be missed behind an escape.
        return [*images, data] if data.startswith("/") else images, unclear
    if depth > DEPTH_MAX:
        raise ValueError("JSON is nested too deep")
    images, unclear = [], []
    parts: list[object] = list(data) if isinstance(data, list) else []
    if isinstance(data, dict):
        parts = list(data.values())
        # {"driver": "rbd", "pool": ...}, and {"file.driver": "rbd", "file.pool": ...}
        told = {key: one for key, one in data.items() if isinstance(one, str) and one}
        words = ",".join(f"{key}={one.replace(',', ',,')}" for key, one in told.items())
        if RBD_DRIVER.search(words):
            images, unclear = _image_of_driver(words)
    for part in parts:
        more, doubts = _images_in_json(part, depth + 1)
        images += more
        unclear += doubts
    return images, unclear


def _json_in(value: str) -> object | None:
    """Of ``{...}``, and of ``file=json:{...}``, where each comma may be two."""
    begin = value.find("{")
    if begin < 0 or not (begin == 0 or value[:begin].rstrip().endswith("json:")):
        return None
    for text in (value[begin:], value[begin:].replace(",,", ",")):
        try:
            data: object = json.JSONDecoder().raw_decode(text)[0]
        except (ValueError, RecursionError):
            continue
        return data
    return {"driver": "rbd"}  # QEMU reads it, or it does not start: it may be any image


def device_images(path: str) -> list[str]:
    """Images of Ceph's behind a block device, as ``image_path`` writes them. Raises ValueError where it can't be told.

    By the kernel's own files, which wait for no storage; through what is stacked on one (LVM, dm-crypt, md).
    """
    parts = path.split("/")
    if parts[:3] == ["", "dev", "rbd"] and len(parts) > 4:
        # What udev calls it, whether it is there now or in a moment; a partition's has a number behind it.
        return [image_path("/".join(parts[3:]))]
    try:
        found = os.stat(path)
    except OSError:
        if RBD_DEVICE.fullmatch(parts[-1]) is not None:
            raise ValueError(f"{path} is not there") from None
        return []
    if not stat.S_ISBLK(found.st_mode):
        return []
    number = f"{os.major(found.st_rdev)}:{os.minor(found.st_rdev)}"
    try:
        name = os.path.basename(os.readlink(f"{SYS}/dev/block/{number}"))
        return _images_below(name)
    except OSError as error:
        raise ValueError(f"{path} can't be looked into ({error.strerror})") from None


def _images_below(name: str) -> list[str]:
    """Raises OSError, ValueError."""
    images: list[str] = []
    level, seen = [name], {name}
    for _ in range(DEVICE_DEPTH_MAX):
        below: list[str] = []
        for one in level:
            images += _images_of(one)
            try:
                below += os.listdir(f"{SYS}/class/block/{one}/slaves")
            except FileNotFoundError:
                continue  # a partition has none
        level = [one for one in below if one not in seen]
        seen.update(level)
        if not level:
            return images
        if len(seen) > DEVICES_MAX:
            break
    raise ValueError(f"{name} is stacked on too much")


def _images_of(name: str) -> list[str]:
    mapped = RBD_DEVICE.fullmatch(name)
    if mapped is not None:
        words = []
        for file in ("pool", "pool_ns", "name"):
            try:
                text = read_file(f"{SYS}/bus/rbd/devices/{mapped[1]}/{file}", 4_096)
            except FileNotFoundError:
                if file != "pool_ns":  # kernels before 4.19 know none
                    raise
                text = b""
            words.append(text.decode("utf-8", "replace").strip())
        return [image_path("/".join(word for word in words if word))]
    if name.startswith("nbd"):
        return _images_of_nbd(name)
    return []


def _images_of_nbd(name: str) -> list[str]:
    """An image that rbd-nbd serves. Whose server lives elsewhere may be one as well."""
    try:
        pid = int(read_file(f"{SYS}/class/block/{name.partition('p')[0]}/pid", 64))
    except FileNotFoundError:
        return []  # not connected
    raise ValueError(f"{name} is served by process {pid}")


def volume_path(pool: str, volume: str) -> str:
    """A volume of libvirt's storage pool as a path, or as an image's. Raises ValueError where it can't be told."""
    if "/" in pool or pool in ("", ".", ".."):
        raise ValueError(f"storage pool {pool}")
    for directory in LIBVIRT_POOLS:
        try:
            data = read_file(os.path.join(directory, f"{pool}.xml"), POOL_BYTES_MAX)
        except FileNotFoundError:
            continue
        except OSError as error:
            raise ValueError(f"storage pool {pool}: {error.strerror}") from None
        kind, source, target = _read_pool(data)
        if kind == "rbd":
            return image_path(f"{source}/{volume}")
        return f"{target}/{volume}"
    raise ValueError(f"storage pool {pool} is not known")


def _read_pool(data: bytes) -> tuple[str, str, str]:
    """(type, name of what it is made of, directory). Raises ValueError."""
    kind, texts, stack = [""], {"source": "", "target": ""}, [""]
    wanted = {("source", "name"), ("target", "path")}

    def start(tag: str, attributes: dict[str, str]) -> None:
        stack.append(tag)
        if len(stack) > DEPTH_MAX:
            raise ValueError("elements are nested too deep")
        if tag == "pool":
            kind[0] = attributes.get("type", "")

    def characters(text: str) -> None:
        if tuple(stack[-2:]) in wanted:
            texts[stack[-2]] += text.strip()

    parser = expat.ParserCreate()
    parser.StartDoctypeDeclHandler = no_doctype
    parser.EntityDeclHandler = no_doctype
    parser.StartElementHandler = start
    parser.EndElementHandler = lambda tag: stack.pop()
    parser.CharacterDataHandler = characters
    parser.buffer_text = True
    try:
        parser.Parse(data, True)
    except expat.ExpatError as error:
        raise ValueError(f"the pool's XML can't be read: {error}") from None
    return kind[0], texts["source"], texts["target"]
