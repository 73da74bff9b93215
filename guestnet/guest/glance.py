"""What libvirt says at a glance, read-only: an answer that does not come at once is none, and no error either.

For completion and for --version, which must neither wait nor fail.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

PATIENCE = 0.5
"""Seconds that libvirt gets to say its versions."""

AT_ONCE = 0.1
"""Seconds that it gets to name its guests: whoever has pressed TAB waits for no more than 150 ms."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Versions:
    """Of libvirt's library here, of the daemon that answers, and of the QEMU it knows; empty where there is none."""

    library: str = ""
    daemon: str = ""
    qemu: str = ""


def guests(uri: str) -> tuple[str, ...]:
    """The names of all guests, sorted; none where libvirt does not say."""
    [names] = _asked(uri, AT_ONCE, lambda connection: [one.name() for one in connection.listAllDomains()])
    return tuple(sorted(names or ()))


def versions(uri: str) -> Versions:
    """The versions there are."""
    try:
        import libvirt
    except ImportError:
        return Versions()
    library = _text(libvirt.getVersion())
    daemon, qemu = _asked(uri, PATIENCE, lambda one: one.getLibVersion(), lambda one: one.getVersion())
    return Versions(library=library, daemon=_text(daemon), qemu=_text(qemu))


def _text(number: int | None) -> str:
    """A version of libvirt's kind, 1000000 * major + 1000 * minor + release."""
    return f"{number // 1_000_000}.{number // 1000 % 1000}.{number % 1000}" if number else ""


def _asked(uri: str, patience: float, *questions: Callable[[Any], Any]) -> list[Any]:
    """The answers to the questions, asked on a connection of their own; None for each that has none in that time.

    A thread that still waits by then ends with the process.
    """
    answers: list[Any] = []
    try:
        import libvirt
    except ImportError:
        return [None] * len(questions)
    libvirt.registerErrorHandler(lambda *_: None, None)

    def ask() -> None:
        try:
            connection = libvirt.openReadOnly(uri)
            try:
                for question in questions:
                    answers.append(question(connection))
            finally:
                connection.close()
        except libvirt.libvirtError:
            pass

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(patience)
    return (answers + [None] * len(questions))[: len(questions)]
