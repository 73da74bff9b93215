"""This machine, told from others."""

import os
from pathlib import Path

ID = Path("/etc/machine-id")


def machine_id() -> str:
    """What tells this machine from others, machine-id(5); empty where there is none."""
    try:
        return ID.read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return ""


def libvirt_uri(connect: str | None) -> str:
    """Where this machine's libvirt is asked: as given, else LIBVIRT_DEFAULT_URI, else the system's."""
    return connect or os.environ.get("LIBVIRT_DEFAULT_URI") or "qemu:///system"
