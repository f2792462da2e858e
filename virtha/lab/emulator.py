"""QEMU as emulating lab hosts start it: with a guest memory that is no multiple of 256 KiB.

Before QEMU 9.0 (commit 03bfc2188f) a live migration loses writes of an emulated guest: where a block of memory is a multiple of
64 pages, the bits of written pages are collected 64 at a time, and the emulated processor is not told that they were cleared, so
its next write to such a page goes uncounted. Under KVM the kernel counts. A guest with a few megabytes of busy memory panicked
here after 11 moves, and not in 60 with 8 KiB less (docs/verification.md). libvirt rounds memory to MiB, so it is taken off behind
it: of ``-m 128`` as libvirt 9.0 writes it, and of ``-m size=131072k`` as later ones do.

Emulated guests that boot take every processor of the machine, from the lab's hosts too: with a dozen of them a guardian missed its lease.
On a real host libvirtd and the guardian don't wait for guests. So guests have the lower priority here, and where asked
(:func:`set_firmware_wait`) sit in their firmware's boot menu for a while before they boot.
"""

import shutil
from pathlib import Path

from virtha.model.errors import Failed

PROGRAM = "qemu-system-x86_64"
FIRMWARE_WAIT_MAX_MS = 65_535
"""QEMU hands it to the firmware as 16 bits (``splash-time``, qemu-options.hx)."""
NICENESS = 10
"""Of a guest's QEMU, all its threads: with its processors' alone its main loop would wait for a lock that a thread has which isn't run."""
_FIRMWARE_WAIT = "firmware-wait-ms"
_SCRIPT = """\
#!/bin/sh
# Written by the lab: how a guest is started here. See virtha/lab/emulator.py.
left=$# before= guest=
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
      guest=yes
      ;;
    esac
    ;;
  esac
  before=$word
  set -- "$@" "$new"
done
[ -n "$guest" ] || exec @REAL@ "$@"
wait_ms=
[ ! -r "${0%/*}/@WAIT@" ] || read -r wait_ms < "${0%/*}/@WAIT@"
[ -z "$wait_ms" ] || set -- "$@" -boot "menu=on,splash-time=$wait_ms"
exec nice -n @NICE@ @REAL@ "$@"
"""


def install_emulator(directory: Path) -> None:
    """``directory``: to be looked at first in the PATH of a host's libvirtd. Raises Failed: no QEMU is installed."""
    real = shutil.which(PROGRAM)
    if real is None:
        raise Failed(f"there is no {PROGRAM}", fix="apt install qemu-system-x86")
    directory.mkdir(parents=True, exist_ok=True)
    program = directory / PROGRAM
    script = _SCRIPT.replace("@REAL@", real).replace("@WAIT@", _FIRMWARE_WAIT)
    program.write_text(script.replace("@NICE@", str(NICENESS)))
    program.chmod(0o755)


def set_firmware_wait(directory: Path, wait_ms: int) -> None:
    """Of guests that are started from now on with the program in ``directory``; 0: they boot at once, as they do by default.
    Raises ValueError: ``wait_ms`` isn't from 0 to FIRMWARE_WAIT_MAX_MS."""
    if not 0 <= wait_ms <= FIRMWARE_WAIT_MAX_MS:
        raise ValueError(f"wait_ms: {wait_ms} is not from 0 to {FIRMWARE_WAIT_MAX_MS}")
    file = directory / _FIRMWARE_WAIT
    if wait_ms:
        file.write_text(f"{wait_ms}\n")
    else:
        file.unlink(missing_ok=True)
