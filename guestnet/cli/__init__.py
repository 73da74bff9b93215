"""The command line: words in, a report and an exit status out.

Each group of commands is a module of its own, imported when one of its commands is called, so that `guestnet --help`
and a mistyped word cost no more than they must.
"""

import copy
import importlib
import os
import signal
import sys
from collections.abc import Callable
from types import FrameType, MappingProxyType
from typing import Any

import typer
from typer.core import TyperGroup, TyperOption

from guestnet import report
from guestnet.errors import ExitCode, GuestnetError, UsageError

_COMMANDS = {
    "attach": ("guests", "Give a guest a NIC on a parent interface."),
    "detach": ("guests", "Take a NIC from a guest."),
    "set": ("guests", "Change a NIC of a guest: mode, link, MTU, bandwidth."),
    "list": ("inventory", "Show the NICs of all guests, or of one."),
    "show": ("inventory", "Show one guest's NICs with all there is to know."),
    "xml": ("xml", "Print the libvirt XML of an interface, domain or network."),
    "macvtap": ("links", "Make, change, list and delete macvtap links."),
    "macvlan": ("links", "Make, change, list and delete macvlan links."),
    "vlan": ("links", "Make, change, list and delete VLAN links."),
    "hook": ("hook", "Install, remove and look at the hook that libvirt calls when guests start and stop."),
    "repair": ("gc", "Mend the NICs of a guest: what list says is not right."),
    "gc": ("gc", "Delete the links that nobody uses any more, and say why."),
    "qemu": ("qemu", "NICs for a QEMU without libvirt: run it with them, plug them in, list them."),
    "exec": ("qemu", "Run any program with the taps of macvtaps open."),
    "host": ("host", "The host's own link on a parent, so that the host and its guests talk."),
    "topology": ("topology", "Bring up whole networks of namespaces, hosts and guests, described by a file."),
    "graph": ("graph", "Draw what is on this host: links, namespaces, guests."),
    "vagrant": ("vagrant", "Print the lines of a Vagrantfile that put a machine on a parent."),
    "lab": ("lab", "Hosts, switch and guests to try things on, all in namespaces."),
    "completion": ("completion", "Print the script that lets a shell complete commands, guests, parents and links."),
}

# what click calls its UsageError and ClickException, by the one way to them that Typer publishes
_ClickUsageError: Any = typer.BadParameter.__bases__[0]
_ClickException: Any = _ClickUsageError.__bases__[0]


class _LazyGroup(TyperGroup):
    summaries = MappingProxyType({name: text for name, (_, text) in _COMMANDS.items()})

    def list_commands(self, ctx: Any) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        return _command(cmd_name) if cmd_name in _COMMANDS else None

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args and args[0] not in _COMMANDS and not args[0].startswith("-"):
            from difflib import get_close_matches

            near = get_close_matches(args[0], _COMMANDS, n=2)
            raise UsageError(
                f"there is no command {args[0]!r}",
                hint=f"did you mean {' or '.join(near)}?" if near else "guestnet --help lists the commands",
            )
        if args and args[0] in _COMMANDS:
            return args[0], _command(args[0], *args[1:2]), args[1:]
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(self.summaries.items()))


_HELP = ("--help", "-h")

app = typer.Typer(
    cls=_LazyGroup, add_completion=False, rich_markup_mode=None, no_args_is_help=True, pretty_exceptions_enable=False,
    context_settings={"help_option_names": [*_HELP]},
)  # fmt: skip


def _command(name: str, below: str = "") -> Any:
    """The command of that name. Of a group only the one ``below`` it that is called is made, if there is such a one:
    each of the others would cost half a millisecond."""
    group: typer.Typer = getattr(importlib.import_module(f"guestnet.cli.{_COMMANDS[name][0]}"), f"{name}_app")
    called = [one for one in group.registered_commands if below and below == _name_of(one)]
    if called and len(group.registered_commands) > 1:
        group = copy.copy(group)
        group.registered_commands = called
        command: Any = typer.main.get_group(group)
    else:
        command = typer.main.get_command(group)
    command.name = name
    _take_loudness(command)
    return command


def _name_of(command: Any) -> str:
    return str(command.name or typer.main.get_command_name(command.callback.__name__))


def _version(wanted: bool) -> None:
    if wanted:
        from guestnet.cli import version

        version.show(json="--json" in sys.argv)
        raise typer.Exit


def _json(wanted: bool) -> None:
    if wanted and "--version" not in sys.argv:
        raise UsageError("--json belongs to a command", hint="write it behind the command: guestnet list --json")


def _quiet(wanted: bool) -> None:
    if wanted:
        report.be_quiet()


def _verbose(wanted: bool) -> None:
    if wanted:
        report.be_verbose()


_LOUDNESS: tuple[tuple[str, Any, str], ...] = (
    ("--quiet", _quiet, "Say nothing but errors and what is asked for."),
    ("--verbose", _verbose, "Say each step of the kernel's and libvirt's on stderr."),
)


def _take_loudness(command: Any) -> None:
    """Let a command and those below it take the options that go with every command, also behind its name."""
    for below in getattr(command, "commands", {}).values():
        _take_loudness(below)
    if not command.ignore_unknown_options:  # there they may be another program's
        command.params += [
            TyperOption(
                param_decls=[name], is_flag=True, default=False, callback=_heard(act), expose_value=False, hidden=True
            )
            for name, act, _ in _LOUDNESS
        ]


def _heard(act: Callable[[bool], None]) -> Callable[[Any, Any, bool], None]:
    return lambda _context, _parameter, wanted: act(wanted)


@app.callback()
def _root(
    version: bool = typer.Option(
        False,
        "--version",
        help="Show the versions of guestnet, kernel, libvirt and QEMU.",
        callback=_version,
        is_eager=True,
    ),
    json: bool = typer.Option(False, "--json", help="With --version: in JSON.", callback=_json),
    quiet: bool = typer.Option(False, _LOUDNESS[0][0], help=_LOUDNESS[0][2], callback=_quiet),
    verbose: bool = typer.Option(False, _LOUDNESS[1][0], help=_LOUDNESS[1][2], callback=_verbose),
) -> None:
    """Attach libvirt and QEMU guests directly to a real network, by macvtap."""


def main() -> None:
    """Run the command that the process was called with, and exit with its status (guestnet.errors.ExitCode)."""
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup(1) wants it
            signal.signal(number, _terminate)
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - for as long as the process lives
    status = int(ExitCode.DONE)
    report.be_quiet(False)
    report.be_verbose(False)
    words = sys.argv[: sys.argv.index("--")] if "--" in sys.argv else sys.argv  # what follows is another program's
    try:
        if sys.stdout is None:  # nothing was done yet, and no fd of ours shall become fd 1
            raise report.unwritten("stdout is closed")
        status = _run(json_wanted="--json" in words)
        report.flush()
    except BrokenPipeError:
        _leave_stdout()
        status = status or ExitCode.FAILED
    except GuestnetError as error:
        _leave_stdout()
        report.error(error, json_wanted=False)
        status = error.code
    except OSError as error:
        if not {*_HELP} & {*words}:
            raise
        _leave_stdout()  # the help is written by the library
        report.error(report.unwritten(error.strerror or str(error)), json_wanted=False)
        status = ExitCode.FAILED
    sys.exit(status)


def _run(*, json_wanted: bool) -> int:
    """The exit status of the command; what went wrong with it is told."""
    try:
        status = app(prog_name="guestnet", standalone_mode=False)
    except GuestnetError as error:
        report.error(error, json_wanted=json_wanted)
        return error.code
    except _ClickException as error:
        context: Any = getattr(error, "ctx", None)
        if type(error).__name__ == "NoArgsIsHelpError":
            report.line(context.get_help())
            return ExitCode.USAGE
        report.error(UsageError(error.format_message(), hint=_next(error, context)), json_wanted=json_wanted)
        return ExitCode.USAGE
    except _Ended as error:
        told = GuestnetError(f"ended by {error.signal.name}, and what was begun is undone")
        for text in getattr(error, "__notes__", ()):  # what could not be undone
            told.add_note(text)
        report.error(told, json_wanted=json_wanted)
        return 128 + error.signal
    return status if isinstance(status, int) else ExitCode.DONE


def _next(error: Any, context: Any) -> str:
    """What to do about words that Click refused. Of a word too many it says nothing where an option is missing, as of
    ``attach vm1 ens3``: they are told as one."""
    missing: Any = getattr(error, "param", None) if type(error).__name__ == "MissingParameter" else None
    # where another program's words may follow, the one too many is rather that program
    asked = missing is not None and missing.param_type_name == "option" and "command" not in context.meta
    if asked and context.info_name in sys.argv:
        words = sys.argv[sys.argv.index(context.info_name) + 1 :]
        spare = context.command.make_parser(context).parse_args(args=words)[1]
        if spare:
            return f"did you mean {max(missing.opts, key=len)} {spare[0]}?"
    return f"{context.command_path if context else 'guestnet'} --help"


def _leave_stdout() -> None:
    """Let what cannot be written go nowhere, so that the end of the process does not try again."""
    if sys.stdout is None:
        return
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, sys.stdout.fileno())
    os.close(null)


class _Ended(BaseException):
    """A signal asked this process to end. Typer answers a KeyboardInterrupt itself, without a word."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.signal = signal.Signals(number)


def _terminate(number: int, _frame: FrameType | None) -> None:
    raise _Ended(number)  # unwinds through the undo stacks
