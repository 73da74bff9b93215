"""Guests of libvirt and QEMU on the real network, by macvtap.

What a program imports from here is described in docs/python.md, and comes with its first use: the command line, which
looks up none of it, does not wait for it.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from guestnet.api import Attached, Detached, attach, detach, list_nics, mac_of, set_nic
    from guestnet.errors import (
        ConflictError,
        ExitCode,
        GuestnetError,
        NotFoundError,
        NotPermittedError,
        TimedOutError,
        UsageError,
    )
    from guestnet.inventory import Row as ListedNic
    from guestnet.qemu import OpenNic, nic

__version__ = "0.1.0"

__all__ = [
    "Attached",
    "ConflictError",
    "Detached",
    "ExitCode",
    "GuestnetError",
    "ListedNic",
    "NotFoundError",
    "NotPermittedError",
    "OpenNic",
    "TimedOutError",
    "UsageError",
    "__version__",
    "attach",
    "detach",
    "list_nics",
    "mac_of",
    "nic",
    "set_nic",
]

_ELSEWHERE = {"ListedNic": ("inventory", "Row"), "OpenNic": ("qemu", "OpenNic"), "nic": ("qemu", "nic")}
"""The module and the name there, of what is neither an error nor a verb of guestnet.api."""


if not TYPE_CHECKING:  # a checker would take any name for one of them

    def __getattr__(name: str) -> Any:
        """One of those, from the module that has it (PEP 562)."""
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        import importlib

        is_error = name.endswith("Error") or name == "ExitCode"
        module, there = _ELSEWHERE.get(name, ("errors" if is_error else "api", name))
        return getattr(importlib.import_module(f"{__name__}.{module}"), there)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
