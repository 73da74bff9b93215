"""Where the files of templates/ are: beside the package in a checkout, inside it once installed."""

from pathlib import Path

from guestnet.errors import GuestnetError, NotFoundError
from guestnet.model import Backend

_PACKAGE = Path(__file__).parent
_LARGEST = 1 << 20


def directory() -> Path:
    """The directory of the templates that came with guestnet."""
    for candidate in (_PACKAGE / "templates", _PACKAGE.parent / "templates"):
        if candidate.is_dir():
            return candidate
    raise GuestnetError("the templates of guestnet are not installed", hint="install guestnet again")


def read(name: str) -> bytes:
    """The template of that file name, as shipped."""
    return (directory() / name).read_bytes()


def interfaces(own: dict[Backend, bytes] | None = None) -> dict[Backend, bytes]:
    """The templates of an <interface> for each backend: the user's where there is one, else as shipped."""
    shipped = {Backend.MACVTAP: "interface-ethernet.xml", Backend.DIRECT: "interface-direct.xml"}
    return {backend: read(name) for backend, name in shipped.items()} | (own or {})


def read_own(path: Path) -> bytes:
    """A template of the user's. Raises NotFoundError, or GuestnetError for what no template can be (over 1 MiB)."""
    try:
        with path.open("rb") as file:
            data = file.read(_LARGEST + 1)
    except FileNotFoundError:
        raise NotFoundError(f"there is no template {path}", hint=f"copy one from {directory()}") from None
    except OSError as error:
        raise GuestnetError(f"the template {path} cannot be read: {error.strerror}") from error
    if len(data) > _LARGEST:
        raise GuestnetError(f"the template {path} is larger than 1 MiB")
    return data
