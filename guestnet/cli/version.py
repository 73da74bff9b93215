"""guestnet --version: of guestnet and of what it works with. Quick, and never an error."""

import os
import re
import subprocess

from guestnet import __version__, report
from guestnet.cli import options

_SECONDS = 2.0


def show(*, json: bool) -> None:
    """The versions of guestnet, the kernel, libvirt and QEMU; what is not there has none."""
    from guestnet.guest import glance

    system, libvirt = os.uname(), glance.versions(options.uri(None))
    qemu = libvirt.qemu or _qemu(system.machine)
    if json:
        report.as_json(
            {
                "guestnet": __version__, "kernel": system.release, "libvirt": libvirt.library,
                "libvirt_daemon": libvirt.daemon, "qemu": qemu,
            }
        )  # fmt: skip
        return
    daemon = f"daemon {libvirt.daemon}" if libvirt.daemon else "no daemon answers"
    report.line(f"guestnet {__version__}")
    report.line(f"Linux    {system.release}")
    report.line(f"libvirt  {libvirt.library or 'not found'} ({daemon})")
    report.line(f"QEMU     {qemu or 'not found'}")


def _qemu(machine: str) -> str:
    """The version of the QEMU that would run a guest for this machine's processor."""
    words = [f"qemu-system-{machine}", "--version"]
    null = subprocess.DEVNULL
    try:
        done = subprocess.run(words, stdin=null, capture_output=True, text=True, timeout=_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    found = re.search(r"version (\d+(?:\.\d+)+)", done.stdout)
    return found[1] if found else ""
