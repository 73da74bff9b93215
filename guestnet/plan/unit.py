"""Systemd units: their words as systemd reads them, and the steps that write them and take them away."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from guestnet.errors import UsageError
from guestnet.model import Link
from guestnet.plan.host import Host, made_for_guests


@dataclass(frozen=True, slots=True, kw_only=True)
class WriteUnit:
    """Write a systemd unit and have it started at each boot."""

    name: str
    text: str

    def __str__(self) -> str:
        return f"write the systemd unit {self.name}, which does this at each boot"


@dataclass(frozen=True, slots=True, kw_only=True)
class DeleteUnit:
    """Take a systemd unit away."""

    name: str

    def __str__(self) -> str:
        return f"delete the systemd unit {self.name}"


def escaped(name: str) -> str:
    """A name as a part of a unit's (systemd-escape(1)): letters, digits, `:`, `_` and `.` stand for themselves, but a
    leading dot."""
    written = []
    for place, byte in enumerate(name.encode()):
        one = chr(byte)
        plain = one.isascii() and (one.isalnum() or one in ":_" or (one == "." and place > 0))
        written.append(one if plain else f"\\x{byte:02x}")
    return "".join(written)


def device_unit(link: str) -> str:
    """The unit that systemd has for a network card: systemd.device(5)."""
    return f"sys-subsystem-net-devices-{escaped(link)}.device"


def command_line(words: Iterable[str]) -> str:
    """Words as systemd.service(5) reads them back: quoted, with what it would replace doubled.

    Raises UsageError for a word that cannot be on a line.
    """
    quoted = []
    for word in words:
        if not word.isprintable():
            raise UsageError(f"{word!r} cannot be in a systemd unit", hint="choose a name that can be printed")
        inside = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
        quoted.append(f'"{inside}"')
    return " ".join(quoted)


def filled(template: str, words: Mapping[str, str]) -> str:
    """A unit's text: the template with the words for each `@NAME@` in it."""
    for name, text in words.items():
        template = template.replace(f"@{name}@", text)
    return template


def card(link: Link, host: Host) -> Link:
    """What is there at boot before guestnet does anything: the link below the VLANs that it made itself."""
    while made_for_guests(link) and (lower := host.below(link)) is not None:
        link = lower
    return link
