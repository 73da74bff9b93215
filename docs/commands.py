"""The pages made of the code: the command reference, docs/reference/*.md, and by way of it the man pages; a schema.

`python -m docs.commands` writes them again; tests/docs/test_reference.py fails where one is not what that would write.
"""

import json
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import typer
from pydantic import TypeAdapter

from guestnet.cli import app
from guestnet.errors import ExitCode
from guestnet.inventory import Row
from guestnet.parents import Parents

REFERENCE = Path(__file__).with_name("reference")
SCHEMAS = Path(__file__).with_name("schema")

MEANS: Mapping[ExitCode, str] = {
    ExitCode.DONE: "done, or so already",
    ExitCode.FAILED: "failed; what was begun is undone",
    ExitCode.USAGE: "the words of the call are wrong",
    ExitCode.NOT_FOUND: "no such guest, interface, namespace, NIC or file",
    ExitCode.NOT_PERMITTED: "not permitted",
    ExitCode.CONFLICT: "in use, or contradicts what is there",
    ExitCode.TIMED_OUT: "the guest, or another guestnet, did not answer in time",
}

ENVIRONMENT: Mapping[str, str] = {
    "LIBVIRT_DEFAULT_URI": "The libvirt that is asked where `--connect` names none; else `qemu:///system`.",
    "GUESTNET_CACHE": "Where the lab keeps its kernel and image. Default: `/var/cache/guestnet`.",
    "GUESTNET_LAB_KVM": "`0` or `1`: whether the lab's guests use KVM. Without it, a probe decides.",
}
"""What a user may set. What is not listed here is read to hand it on, or to find programs by."""

FILES: Mapping[str, str] = {
    "/etc/guestnet/parents.yaml": "What the NICs of other hosts are called here, for guests that come from there.",
    "/etc/libvirt/hooks/qemu.d/guestnet": "The hook that libvirt calls when guests start and stop.",
    "/run/guestnet": "Locks, and what topologies that are up have changed.",
}

_DEFAULT = re.compile(r"\s+\[([^]]+)\]$")
_DETAIL = re.compile(r"\n{2,}")


def pages(program: typer.Typer = app) -> dict[str, str]:
    """Every page by its name without suffix: guestnet, and one for each command or group of commands."""
    root: Any = typer.main.get_command(program)
    context = typer.Context(root, info_name="guestnet")
    children = list(_shown(root, context))
    made = {"guestnet": "\n".join(_overview(root, context, children))}
    for child, within in children:
        made[_page(within)] = "\n".join(_command_page(child, within))
    return made


def titles() -> dict[str, str]:
    """What each page is about, in one line and without a full stop, as the NAME of a man page wants it."""
    root: Any = typer.main.get_command(app)
    context = typer.Context(root, info_name="guestnet")
    about = {"guestnet": _first(root)} | {_page(within): _first(child) for child, within in _shown(root, context)}
    return {name: text.replace("`", "").rstrip(".") for name, text in about.items()}


def _page(context: Any) -> str:
    return str(context.command_path).replace(" ", "-")


def _shown(group: Any, context: Any) -> Iterator[tuple[Any, Any]]:
    """The commands of a group that are not hidden, each with its context."""
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if not command.hidden:
            yield command, typer.Context(command, info_name=name, parent=context)


def _overview(root: Any, context: Any, children: Iterable[tuple[Any, Any]]) -> Iterator[str]:
    yield from ("# guestnet", "")
    yield from ("## Synopsis", "", f"`{_usage(root, context)}`", "")
    yield from ("## Description", "", *_description(root), "")
    yield from ("## Commands", "")
    for child, within in children:
        yield from _item(f"[{within.command_path}]({_page(within)}.md)", _first(child))
    yield from _parameters(root, "##")
    yield "Every command takes `--help`, or `-h`; `lab exec` only the former: there `-h` may be the command's own."
    yield ""
    yield from ("## Environment", "")
    for name, text in ENVIRONMENT.items():
        yield from _item(f"`{name}`", text)
    yield from ("## Files", "")
    for name, text in FILES.items():
        yield from _item(f"`{name}`", text)
    yield from ("## Exit status", "")
    for code in ExitCode:
        yield from _item(f"`{int(code)}`", f"{MEANS[code]}")
    yield from _item("`128` and more", "128 and the number of the signal that ended it; what was begun is undone")
    yield (
        "An error is one line on stderr and, where there is one, a `hint:` with the next command; with `--json` it is "
        'an object on stdout: `{"error": {"message", "hint", "code", "notes"}}`.'
    )
    yield ""


def _command_page(command: Any, context: Any) -> Iterator[str]:
    children = list(_shown(command, context)) if hasattr(command, "list_commands") else []
    yield from (f"# {context.command_path}", "")
    yield from ("## Synopsis", "")
    for one, within in children or [(command, context)]:
        yield from (f"`{_usage(one, within)}`", "")
    yield from ("## Description", "", *_description(command), "")
    yield from _parameters(command, "##")
    for child, within in children:
        yield from (f"## {within.command_path}", "", *_description(child), "")
        yield from _parameters(child, "###")
    yield from ("## Exit status", "", *(f"- {int(code)}: {MEANS[code]}" for code in ExitCode), "")
    yield from ("## See also", "", "[guestnet(1)](guestnet.md)", "")


def _usage(command: Any, context: Any) -> str:
    """The call: what has to be said is in it, what may be said is [OPTIONS]."""
    words = command.collect_usage_pieces(context)
    needed = [_form(one) for one in command.params if one.param_type_name == "option" and one.required]
    if not any(one.param_type_name == "option" for one in _seen(command)) and not hasattr(command, "list_commands"):
        words = [word for word in words if word != "[OPTIONS]"]  # which is there for --help alone
    at = words.index("[OPTIONS]") + 1 if "[OPTIONS]" in words else 0
    return " ".join(
        [context.command_path, *(re.sub(r"[{}]", "", word) for word in (*words[:at], *needed, *words[at:]))]
    )


def _form(option: Any) -> str:
    """How the option is written, its long name first: `--connect, -c URI`."""
    names = ", ".join(sorted((*option.opts, *option.secondary_opts), key=len, reverse=True))
    return names if option.is_flag or option.count else f"{names} {option.metavar or option.name.upper()}"


def _first(command: Any) -> str:
    return _DETAIL.split((command.help or "").strip())[0].replace("\n", " ")


def _description(command: Any) -> Iterator[str]:
    parts = _DETAIL.split((command.help or "").strip())
    for number, part in enumerate(parts):
        if number:
            yield ""
        yield _text(" ".join(part.split()))


def _seen(command: Any) -> list[Any]:
    return [one for one in command.params if not getattr(one, "hidden", False)]


def _parameters(command: Any, level: str) -> Iterator[str]:
    """The arguments and options that are not hidden."""
    seen = _seen(command)
    for title, kind in (("Arguments", "argument"), ("Options", "option")):
        of_kind = [one for one in seen if one.param_type_name == kind]
        if not of_kind:
            continue
        yield from (f"{level} {title}", "")
        for one in of_kind:
            term = _form(one) if kind == "option" else str(one.metavar or one.name.upper())
            yield from _item(f"`{term}`", _about(one))


def _about(parameter: Any) -> str:
    """What is said of it, and what of it else counts: that it is required, repeatable, its default and variable."""
    text = (parameter.help or "").strip()
    default = found[1] if (found := _DEFAULT.search(text)) else ""
    text = _DEFAULT.sub("", text)
    if text and text[-1] not in ".:":
        text += "."
    if not default and parameter.default not in (None, False, (), []) and not callable(parameter.default):
        default = str(getattr(parameter.default, "value", parameter.default))
    facts = []
    if parameter.required:
        facts.append("Required.")
    if parameter.param_type_name == "option" and parameter.multiple:
        facts.append("Can be given several times.")
    if default:
        facts.append(f"Default: {default}.")
    if parameter.envvar:
        names = [parameter.envvar] if isinstance(parameter.envvar, str) else parameter.envvar
        facts.append(f"Environment: {', '.join(names)}.")
    return " ".join([_text(text), *facts]).strip()


def _item(term: str, text: str) -> Iterator[str]:
    """One entry of a definition list, which reads well as plain text too."""
    yield from (term, f": {text}", "")


def _text(text: str) -> str:
    """The words as Markdown: what it would take for HTML or stress is escaped, `code` stays code."""
    parts = text.split("`")
    return "`".join(
        re.sub(r"([<*\\])", r"\\\1", part) if number % 2 == 0 else part for number, part in enumerate(parts)
    )


def schemas() -> dict[str, dict[str, Any]]:
    """JSON schemas by name: of /etc/guestnet/parents.yaml, and of what list and show answer with --json."""
    of = {"parents": TypeAdapter[Any](Parents), "list": TypeAdapter[Any](tuple[Row, ...])}
    titles = {"parents": "guestnet parents.yaml", "list": "guestnet list --json"}
    draft = "https://json-schema.org/draft/2020-12/schema"
    made = {name: adapter.json_schema(mode="serialization") for name, adapter in of.items()}
    return {name: {"$schema": draft, **schema, "title": titles[name]} for name, schema in made.items()}


def files() -> dict[Path, str]:
    """Each file that is made, with its text."""
    made = {REFERENCE / f"{name}.md": text for name, text in pages().items()}
    return made | {SCHEMAS / f"{name}.json": json.dumps(one, indent=2) + "\n" for name, one in schemas().items()}


def write() -> list[Path]:
    """Write what is not so already, and take away the pages of commands that are no more; which those are."""
    REFERENCE.mkdir(exist_ok=True)
    wanted = files()
    gone = [path for path in REFERENCE.glob("*.md") if path not in wanted]
    for path in gone:
        path.unlink()
    changed = [path for path, text in wanted.items() if not path.exists() or path.read_text(encoding="utf-8") != text]
    for path in changed:
        path.write_text(wanted[path], encoding="utf-8")
    return sorted(gone + changed)


if __name__ == "__main__":
    for path in write():
        sys.stdout.write(f"{path.relative_to(REFERENCE.parents[1])} is written again\n")
