"""What the NICs of other hosts are called on this one: /etc/guestnet/parents.yaml.

    parents:
      ens3: enp1s0
      ens4.100: storage

A guest that arrives from another host names its parents as they are called there.
"""

import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from guestnet.errors import GuestnetError, UsageError
from guestnet.model import ParentName

PATH = Path("/etc/guestnet/parents.yaml")

_LARGEST = 1 << 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Parents:
    """The names of parents elsewhere, each with its name here."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}
    parents: Mapping[str, str] = field(default_factory=dict)

    def here(self, name: str) -> str:
        """What ``name`` is called here: by the whole name, else by the NIC in NIC.VID; the same if none is listed."""
        if name in self.parents:
            return self.parents[name]
        nic, _, tail = name.rpartition(".")
        return f"{self.here(nic)}.{tail}" if nic and tail.isdecimal() else name


def read(path: Path = PATH) -> Parents:
    """The host's map; empty where there is no file. Raises GuestnetError for one that is not its form, and for one that
    others than root may write: it decides on which network a guest is."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        return Parents()
    except OSError as error:
        raise GuestnetError(f"{path} cannot be read: {error.strerror}") from error
    try:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            raise GuestnetError(f"{path} is no plain file")
        if found.st_uid != 0 or found.st_mode & 0o022:
            raise GuestnetError(
                f"{path} can be written by others than root", hint=f"chown root:root {path}; chmod 644 {path}"
            )
        data = os.read(fd, _LARGEST + 1)
    finally:
        os.close(fd)
    if len(data) > _LARGEST:
        raise GuestnetError(f"{path} is larger than 64 KiB")
    return _parse(data, path)


def _parse(data: bytes, path: Path) -> Parents:
    # 40 ms that a host without such a file does without
    from pydantic import TypeAdapter, ValidationError
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        said = YAML(typ="safe", pure=True).load(data)
        parents = TypeAdapter(Parents).validate_python({} if said is None else said)
        for names in parents.parents.items():
            for name in names:
                ParentName(name)
    except YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark is not None else ""
        raise GuestnetError(f"{path}{where}: not YAML: {getattr(error, 'problem', None) or error}") from None
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise GuestnetError(
            f"{path}: {where}: {first['msg']}", hint="it has one key, parents, with NAME THERE: NAME HERE below it"
        ) from None
    except UsageError as error:
        raise GuestnetError(f"{path}: {error.message}", hint=error.hint) from None
    except (RecursionError, ValueError) as error:  # nested too deep; no date, no number, though it looks like one
        raise GuestnetError(f"{path}: not YAML: {error}") from None
    return parents
