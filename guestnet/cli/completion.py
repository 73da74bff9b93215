"""guestnet completion: the scripts for shells, and what they ask.

A script hands over the words of the line so far; what could come next is found by walking the commands. Options and
arguments are told apart by their metavar, which is the same wherever the same is meant.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Annotated, Any

import typer

from guestnet import report
from guestnet.cli import options

completion_app = typer.Typer(
    rich_markup_mode=None, add_completion=False, pretty_exceptions_enable=False, no_args_is_help=True
)

FILES = ":files"
"""What is said in place of words where the name of a file is wanted: the shell knows those."""

_MODELS = ("virtio", "e1000e", "e1000", "rtl8139", "vmxnet3")


@completion_app.callback()
def _completion() -> None:
    """Print the script that lets a shell complete commands, options, guests, parents and links."""


@completion_app.command()
def bash() -> None:
    """Print the script for bash; it belongs to ~/.local/share/bash-completion/completions/guestnet."""
    _script("bash")


@completion_app.command()
def zsh() -> None:
    """Print the script for zsh; it belongs to a directory of $fpath, as _guestnet."""
    _script("zsh")


@completion_app.command()
def fish() -> None:
    """Print the script for fish; it belongs to ~/.config/fish/completions/guestnet.fish."""
    _script("fish")


@completion_app.command(hidden=True)
def words(
    context: typer.Context,
    line: Annotated[
        list[str] | None, typer.Argument(metavar="WORD...", help="After `--`, the last one unfinished.")
    ] = None,
) -> None:
    """Say what the last word could become, a line each, with a tab and a description where there is one."""
    *before, unfinished = line or [""]
    found = candidates(context.find_root().command, before, unfinished)
    lines = (f"{word}\t{text}\n" if text else f"{word}\n" for word, text in found if word.isprintable())
    report.document("".join(lines))


def _script(shell: str) -> None:
    from guestnet import templates

    report.document(templates.read(f"completion/guestnet.{shell}").decode())


def candidates(root: Any, before: Sequence[str], unfinished: str) -> Iterator[tuple[str, str]]:
    """What the unfinished word could become after those before it, with a description or nothing."""
    place = _Place(root)
    for word in before:
        if not place.go(word):
            return
    taker, head = place.taker, ""
    if taker is None and unfinished.startswith("--") and "=" in unfinished and not place.ended:
        option, _, unfinished = unfinished.partition("=")
        taker, head = place.option(option), f"{option}="
        if taker is None:
            return
    if taker is not None:
        found = _values(taker, place)
    elif unfinished.startswith("-") and not place.ended:
        found = place.options()
    elif place.commands:
        found = place.commands.items()
    else:
        found = _values(place.argument, place)
    for word, text in found:
        if word == FILES or word.startswith(unfinished):
            yield (word if word == FILES else head + word), text


class _Place:
    """Where a line has come to: the command, the option that waits for its value, and the arguments given."""

    def __init__(self, command: Any) -> None:
        self.command = command
        self.path: list[str] = []
        self.taker: Any = None
        self.ended = False  # by `--`
        self.given: list[str] = []
        self.said: dict[str, str] = {}

    def go(self, word: str) -> bool:
        """Take one whole word; False where it leads nowhere."""
        if self.taker is not None:
            self.said[self.taker.name] = word
            self.taker = None
        elif word == "--" and not self.ended:
            self.ended = True
        elif word.startswith("-") and not self.ended and word != "-":
            name, equals, value = word.partition("=")
            option = self.option(name)
            if option is not None and not option.is_flag:
                if equals:
                    self.said[option.name] = value
                else:
                    self.taker = option
        elif hasattr(self.command, "get_command"):
            command = self.command.get_command(None, word)
            if command is None:
                return False
            self.command = command
            self.path.append(word)
        else:
            self.given.append(word)
        return True

    @property
    def commands(self) -> dict[str, str]:
        """The commands of a group and what they do; none of a command that is no group."""
        if not hasattr(self.command, "list_commands"):
            return {}
        if hasattr(self.command, "summaries"):  # without an import of each
            return dict(self.command.summaries)
        commands = {name: self.command.get_command(None, name) for name in self.command.list_commands(None)}
        return {name: one.get_short_help_str(100) for name, one in commands.items() if not one.hidden}

    def option(self, name: str) -> Any:
        """The option of that name."""
        found = (one for one in self.command.params if name in (*one.opts, *one.secondary_opts))
        return next((one for one in found if one.param_type_name == "option"), None)

    def options(self) -> Iterator[tuple[str, str]]:
        """The options with what they mean, the longest name of each."""
        for one in self.command.params:
            if one.param_type_name == "option" and not one.hidden:
                for names in (one.opts, one.secondary_opts):
                    if names:
                        yield max(names, key=len), one.help or ""
        yield "--help", "Show this message and exit."

    @property
    def argument(self) -> Any:
        """The argument that comes next; the last one where it takes several."""
        found = [one for one in self.command.params if one.param_type_name == "argument"]
        if len(self.given) < len(found):
            return found[len(self.given)]
        return found[-1] if found and found[-1].nargs == -1 else None


def _values(parameter: Any, place: _Place) -> Iterable[tuple[str, str]]:
    metavar = getattr(parameter, "metavar", None) or ""
    if metavar in ("NAME", "NAME...") and parameter.param_type_name == "argument":
        return _names(place)
    if metavar in _SOURCES:
        return _SOURCES[metavar](place)
    if "|" in metavar and metavar.replace("|", "").replace(".", "").isalnum() and not metavar.isupper():
        return [(word, "") for word in metavar.split("|")]
    return ()


def _guests(place: _Place) -> Iterator[tuple[str, str]]:
    from guestnet.guest import glance

    return ((name, "") for name in glance.guests(options.uri(place.said.get("connect"))))


def _links() -> tuple[Any, ...]:
    from guestnet.kernel.link import Links

    try:
        with Links() as links:
            return links.all()
    except OSError:
        return ()


def _parents(_: _Place) -> Iterator[tuple[str, str]]:
    """What can carry guests: not loopback, not a macvlan of its own, not a port of a bridge or bond."""
    for link in _links():
        if link.ethernet and not link.loopback and link.kind not in ("macvtap", "macvlan") and link.master is None:
            yield link.readable, link.kind


def _nics(place: _Place) -> Iterator[tuple[str, str]]:
    guest = place.given[0] if place.given else None
    for link in _links():
        if link.kind == "macvtap" and link.ours and guest in (None, link.guest_name):
            yield link.name, link.mac


def _of_kind(*kinds: str) -> Callable[[_Place], Iterator[tuple[str, str]]]:
    return lambda _: ((link.readable, link.mac) for link in _links() if link.kind in kinds)


def _namespaces(_: _Place) -> Iterator[tuple[str, str]]:
    from guestnet.kernel import netns

    with suppress(OSError):
        yield from ((name, "") for name in netns.names())


def _names(place: _Place) -> Iterator[tuple[str, str]]:
    """The links that a command on links is about: those of its kind, but none where it makes new ones."""
    match place.path:
        case ["macvtap" | "macvlan" | "vlan" as kind, "set" | "list" | "delete"]:
            return _of_kind(kind)(place)
    return iter(())


def _topologies(_: _Place) -> Iterator[tuple[str, str]]:
    from guestnet import templates

    yield from ((name, "") for name in sorted(path.stem for path in templates.directory().glob("topologies/*.yaml")))
    yield FILES, ""


def _words(*all_of_them: str) -> Callable[[_Place], Iterable[tuple[str, str]]]:
    return lambda _: [(word, "") for word in all_of_them]


_SOURCES: dict[str, Callable[[_Place], Iterable[tuple[str, str]]]] = {
    "GUEST": _guests,
    "IFACE": _parents,
    "IFACE[.VID]": _parents,
    "PARENT": _parents,
    "NIC": _nics,
    "NIC...": _nics,
    "IFNAME...": _of_kind("macvtap"),
    "NAME|PARENT": _of_kind("macvlan"),
    "NS": _namespaces,
    "MODE": _words("bridge", "vepa", "private", "passthru"),
    "MODEL": _words(*_MODELS),
    "URI": _words("qemu:///system"),
    "FILE": _words(FILES),
    "SOCKET": _words(FILES),
    "FILE|NAME": _topologies,
    "[FILE|NAME]": _topologies,
}
