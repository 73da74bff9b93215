"""This machine, told from others."""

from pathlib import Path

ID = Path("/etc/machine-id")


def machine_id() -> str:
    """What tells this machine from others, machine-id(5); empty where there is none."""
    try:
        return ID.read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return ""
