"""What the tiny guest runs: its start script, its shutdown, a writer of records, and the two ways to hurt it.

The guest is one initramfs: busybox, Debian's qemu-guest-agent and a handful of kernel modules. Its
disk is read by the boot loader, and written once per boot (the boot counter), so that a test can
tell "it was restarted" from "it never stopped" by what is on the disk.
"""

BOOT_COUNTER_SECTOR = 64
"""Where the boot counter lies on the disk: behind the boot sector, before the first partition."""

MODULES = (
    "virtio_pci",
    "virtio_console",
    "virtio_blk",
    "virtio-rng",
    "virtio_net",
    "virtio_balloon",
    "i6300esb",
    "ib700wdt",
    "pvpanic-mmio",
    "pvpanic-pci",
    "evdev",
    "button",
)
"""What is loaded, in this order, each after what it depends on. ``pvpanic-mmio`` also drives the ISA
card (ACPI id QEMU0001); ``evdev`` and ``button`` bring the ACPI power button to acpid."""

KERNEL_COMMAND_LINE = (
    # `panic=0`: after a panic the kernel must sit still, so that the card or pvpanic has its say.
    # The rest saves seconds under TCG: nothing here needs mitigations, audit or self-tests.
    "console=ttyS0,115200 quiet panic=0 mitigations=off nokaslr audit=0 apparmor=0 "
    "random.trust_cpu=on cryptomgr.notests no_timer_check rcupdate.rcu_expedited=1 "
    "i8042.noaux i8042.nopnp 8250.nr_uarts=1"
)

SYSLINUX_CONFIG = f"""\
DEFAULT tiny
PROMPT 0
TIMEOUT 0
LABEL tiny
  LINUX vmlinuz
  INITRD initrd
  APPEND {KERNEL_COMMAND_LINE}
"""

RC = f"""\
#!/bin/sh
# Run once by init, before anything else.
export PATH=/bin:/sbin:/usr/bin:/usr/sbin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mkdir -p /dev/pts /dev/shm /run /tmp
hostname tiny
ln -sf /proc/self/fd /dev/fd

while read -r module; do
  # ib700 is an ISA card that can't be probed: its driver would claim one that is not there.
  [ "$module" = ib700wdt ] && [ -c /dev/watchdog ] && continue
  insmod "/lib/modules/$module.ko" 2>/dev/null
done < /lib/modules/order

# udev would make these links; the guest agent finds its channel by name (A3).
mkdir -p /dev/virtio-ports
for port in /sys/class/virtio-ports/*; do
  [ -e "$port/name" ] && ln -sf "/dev/${{port##*/}}" "/dev/virtio-ports/$(cat "$port/name")"
done

# The boot counter: one sector before the first partition.
boots=0
if [ -b /dev/vda ]; then
  boots=$(dd if=/dev/vda bs=512 skip={BOOT_COUNTER_SECTOR} count=1 2>/dev/null | tr -dc 0-9)
  boots=$(( ${{boots:-0}} + 1 ))
  printf '%-512d' "$boots" | dd of=/dev/vda bs=512 seek={BOOT_COUNTER_SECTOR} conv=fsync 2>/dev/null
fi
echo "$boots" > /run/boots

# Only where there is a card. Not respawned: killing it must leave the card unfed (W11).
if [ -c /dev/watchdog ]; then watchdog -T 6 -t 2 /dev/watchdog; fi
acpid -l /dev/null
ip link set lo up
[ -d /sys/class/net/eth0 ] && ip link set eth0 up
read -r uptime _ < /proc/uptime
echo "tiny: boot $boots, up after $uptime s" > /dev/console
lab-writer < /dev/null > /dev/null 2>&1 &
"""

INITTAB = """\
::sysinit:/etc/rc
::respawn:/usr/sbin/qemu-ga -m virtio-serial -p /dev/virtio-ports/org.qemu.guest_agent.0 -t /run
ttyS0::askfirst:-/bin/sh
::ctrlaltdel:/sbin/reboot
"""

SHUTDOWN = """\
#!/bin/sh
# Called by the guest agent as `shutdown -h -P|-H|-r +0 text`, and by acpid for the power button.
# Nothing is mounted, so nothing is lost by going at once; TERM lets the watchdog daemon disarm the
# card first, else it would fire into the shutdown.
how=poweroff
for word; do
  case "$word" in
    -r) how=reboot ;;
    -H) how=halt ;;
  esac
done
killall -TERM watchdog 2>/dev/null
echo "tiny: $how" > /dev/console
sync
exec $how -f
"""

POWER_BUTTON = """\
#!/bin/sh
exec /sbin/shutdown -P
"""

HANG = """\
#!/bin/sh
# Stops feeding the card, without the goodbye that would disarm it: it fires within 6 seconds.
kill -9 $(pidof watchdog)
"""

WRITER = """\
#!/bin/sh
# Numbered records, if the second disk is marked for them: record N goes to sector N, and is told on the serial port once it is
# on the disk. `record_ledger.py` reads both.
disk=/dev/vdb
first() { dd if=$disk bs=512 skip="$1" count=1 2> /dev/null; }
[ -b $disk ] && [ "$(first 0 | tr -dc a-z-)" = virtha-records ] || exit 0
read -r uuid < /proc/sys/kernel/random/uuid
writer=${uuid%%-*}

# The newest that is there: they have no gaps.
newest=0
end=$(( $(cat /sys/class/block/vdb/size) - 1 ))
above=$end
while [ $newest -lt $above ]; do
  middle=$(( (newest + above + 1) / 2 ))
  if first $middle | grep -q '^record '; then newest=$middle; else above=$((middle - 1)); fi
done

while [ $newest -lt $end ]; do
  next=$((newest + 1))
  if printf '%-512s' "record $next $writer" | dd of=$disk bs=512 seek=$next conv=fsync 2> /dev/null; then
    newest=$next
    echo "ack $next $writer ok" > /dev/console
  fi
  sleep 0.5
done
"""

PANIC = """\
#!/bin/sh
# Crashes the kernel. The pause lets the guest agent's answer leave first.
(sleep 0.2; echo 1 > /proc/sys/kernel/sysrq; echo c > /proc/sysrq-trigger) &
"""

FILES: dict[str, tuple[int, str]] = {
    "etc/rc": (0o755, RC),
    "etc/inittab": (0o644, INITTAB),
    "etc/passwd": (0o644, "root::0:0:root:/:/bin/sh\n"),
    "etc/group": (0o644, "root:x:0:\n"),
    "etc/os-release": (0o644, 'ID=virtha-tiny\nNAME="virtha tiny guest"\nPRETTY_NAME="tiny"\n'),
    "etc/acpi/PWRF/00000080": (0o755, POWER_BUTTON),
    "sbin/shutdown": (0o755, SHUTDOWN),
    "usr/bin/lab-hang": (0o755, HANG),
    "usr/bin/lab-writer": (0o755, WRITER),
    "usr/bin/lab-panic": (0o755, PANIC),
}
"""Path in the guest: mode and text."""
