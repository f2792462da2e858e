"""QEMU as emulating lab hosts start it: with a guest memory that is no multiple of 256 KiB.

Before QEMU 9.0 (commit 03bfc2188f) a live migration loses writes of an emulated guest: where a block of memory is a multiple of
64 pages, the bits of written pages are collected 64 at a time, and the emulated processor is not told that they were cleared, so
its next write to such a page goes uncounted. Under KVM the kernel counts. A guest with a few megabytes of busy memory panicked
here after 11 moves, and not in 60 with 8 KiB less (docs/verification.md). libvirt rounds memory to MiB, so it is taken off behind
it: of ``-m 128`` as libvirt 9.0 writes it, and of ``-m size=131072k`` as later ones do.
"""

import shutil
from pathlib import Path

from virtha.model.errors import Failed

PROGRAM = "qemu-system-x86_64"
_SCRIPT = """\
#!/bin/sh
# Written by the lab: takes 8 KiB off the memory that libvirt asks for. See virtha/lab/emulator.py.
left=$# before=
while [ "$left" -gt 0 ]; do
  word=$1
  shift
  left=$((left - 1))
  new=$word
  case $before in
  -m)
    kib=
    case $word in
    size=*k) kib=${word#size=} kib=${kib%k} ;;
    '' | *[!0-9]*) ;;
    *) kib=$((word * 1024)) ;;
    esac
    case $kib in
    '' | *[!0-9]*) ;;
    *) new="size=$((kib - 8))k" ;;
    esac
    ;;
  -object)
    case $word in
    *'"id":"pc.ram","size":'*'}')
      size=${word##*'"size":'}
      size=${size%'}'}
      new=${word%"$size"'}'}$((size - 8192))'}'
      ;;
    esac
    ;;
  esac
  before=$word
  set -- "$@" "$new"
done
exec @REAL@ "$@"
"""


def install_emulator(directory: Path) -> None:
    """``directory``: to be looked at first in the PATH of a host's libvirtd. Raises Failed: no QEMU is installed."""
    real = shutil.which(PROGRAM)
    if real is None:
        raise Failed(f"there is no {PROGRAM}", fix="apt install qemu-system-x86")
    directory.mkdir(parents=True, exist_ok=True)
    program = directory / PROGRAM
    program.write_text(_SCRIPT.replace("@REAL@", real))
    program.chmod(0o755)
