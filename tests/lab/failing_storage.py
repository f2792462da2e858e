"""A second storage domain of a lab, whose reads and writes fail on one host at a time, and come back."""

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from virtha.lab.node import STORAGE_NAME, wait_until
from virtha.lab.story import MEMORY_BYTES, Story

NAME = "failing"
SHIM = Path(__file__).with_name("eio.c")


class FailingStorage:
    def __init__(self, story: Story) -> None:
        self._story = story
        self._directory = Path(story.lab.directory)
        self.path = self._directory / NAME

    def _mark(self, host: str) -> Path:
        return self._directory / f"{host}-eio"

    def break_on(self, host: str) -> None:
        self._mark(host).touch()

    def mend_on(self, host: str) -> None:
        self._mark(host).unlink(missing_ok=True)

    def create_vm(self, name: str, *, host: str, **changes: object) -> None:
        """Running there, its only disk on this domain."""
        body = {
            "name": name,
            "image": "tiny",
            "storage_domain": NAME,
            "memory_bytes": MEMORY_BYTES,
            "ha": True,
            **changes,
        }
        self._story.api.operate("/v1/vms", body)
        self._story.start_vm(name, host=host)

    def _mount(self) -> None:
        shim = self._directory / "eio.so"
        compiler = ["gcc", "-shared", "-fPIC", "-O1", "-o", str(shim), str(SHIM), "-ldl"]
        subprocess.run(compiler, check=True)
        backing = self._directory / f"{NAME}-backing"
        self.path.mkdir()
        (backing / "images").mkdir(parents=True)
        image = self._directory / f"storage/{STORAGE_NAME}/images/tiny.qcow2"
        shutil.copy(image, backing / "images")
        for host in self._story.lab.hosts:
            variables = [f"LD_PRELOAD={shim}", f"EIO_WHILE={self._mark(host.name)}"]
            options = ["-o", "fsname=virtha-lab-failing", str(backing), str(self.path)]
            host.run_checked(["env", *variables, "bindfs", *options])

    def _usable(self) -> bool:
        view = self._story.api.get(f"/v1/storage-domains/{NAME}")
        usable_by = view["usable_by"]
        hosts = len(self._story.lab.hosts)
        there = "tiny" in {image["name"] for image in view["images"]}
        return there and len(usable_by) == hosts and all(usable_by.values())

    def add(self) -> None:
        self._mount()
        self._story.lab.virtha("storage", "add", NAME, "--path", str(self.path))
        wait_until(self._usable, f"all hosts can use {NAME}", timeout_s=120.0, pause_s=0.2)

    def remove(self) -> None:
        for host in self._story.lab.hosts:
            self.mend_on(host.name)
        for item in self._story.api.get("/v1/vms")["items"]:
            self._story.delete_vm(item["vm"]["name"])
        self._story.lab.virtha("storage", "remove", NAME, "--yes")
        for host in self._story.lab.hosts:
            host.run_checked(["umount", "-l", str(self.path)])


@contextmanager
def failing_storage(story: Story) -> Iterator[FailingStorage]:
    storage = FailingStorage(story)
    storage.add()
    try:
        yield storage
    finally:
        storage.remove()
