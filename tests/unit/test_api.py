"""What `from guestnet import …` gives: the words of the command line, and errors before anything is looked at."""

import inspect
import pkgutil
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_type_hints

import pytest

import guestnet as package
from guestnet import (
    Attached,
    Detached,
    ExitCode,
    GuestnetError,
    ListedNic,
    OpenNic,
    UsageError,
    attach,
    detach,
    errors,
    list_nics,
    mac_of,
    set_nic,
)
from guestnet.cli import guests
from guestnet.model import Counters, Mac
from guestnet.plan import qemu
from tests.unit.conftest import Guestnet

PACKAGE = Path(package.__file__).parent


def test_every_published_name_is_there_and_typed() -> None:
    assert (PACKAGE / "py.typed").exists()
    for name in package.__all__:
        assert getattr(package, name) is not None
        assert name in dir(package)
    with pytest.raises(AttributeError, match="no attribute 'atach'"):
        _ = package.atach  # type: ignore[attr-defined]


def test_no_module_has_a_published_name() -> None:
    # the import of such a module would put it in the place of the function
    assert {module.name for module in pkgutil.iter_modules([str(PACKAGE)])} & set(package.__all__) == set()


def test_all_errors_are_published() -> None:
    kinds = {name for name, one in vars(errors).items() if inspect.isclass(one) and issubclass(one, GuestnetError)}
    assert kinds | {"ExitCode"} <= set(package.__all__)
    assert UsageError("x").code is ExitCode.USAGE


def keywords(call: Callable[..., Any]) -> set[str]:
    return {name for name, one in inspect.signature(call).parameters.items() if one.kind is one.KEYWORD_ONLY}


@pytest.mark.parametrize(
    ("call", "command", "only_here", "only_there"),
    [
        # a template is a file of the person's, several parents are several calls; what is printed is for persons
        (attach, guests.attach, {"hook", "notice"}, {"guest", "parent", "template", "no_hook", "json"}),
        (set_nic, guests.change, {"notice"}, {"guest", "nic", "json"}),
        (detach, guests.detach, {"notice"}, {"guest", "nic", "json"}),
    ],
    ids=["attach", "set_nic", "detach"],
)
def test_the_words_are_those_of_the_command_line(
    call: Callable[..., Any], command: Callable[..., Any], only_here: set[str], only_there: set[str]
) -> None:
    assert keywords(call) - only_here == set(inspect.signature(command).parameters) - only_there


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        ({"mode": "brigde"}, "did you mean bridge"),
        ({"mac": "52:54"}, "six bytes"),
        ({"mac": "01:00:5e:00:00:01"}, "second hex digit"),
        ({"vlan": 4095}, "1 to 4094"),
        ({"ifname": "a/b"}, "no '/'"),
        ({"multicast": "some"}, "all, filtered"),
        ({"link": "left"}, "up, down"),
        ({"backend": "tap"}, "macvtap, direct"),
        ({"inbound": "fast"}, "average"),
        ({"outer_protocol": "qinq"}, "802.1Q"),
    ],
    ids=str,
)
def test_a_wrong_word_is_an_error_with_a_hint_before_libvirt_is_asked(words: dict[str, Any], hint: str) -> None:
    with pytest.raises(UsageError) as caught:
        attach("vm1", "ens3", connect="nowhere:///", **words)
    assert (caught.value.code, hint in caught.value.hint) == (2, True)


def test_detach_takes_names_or_everything() -> None:
    for names, everything in (((), False), (("52:54:00:00:00:01",), True)):
        with pytest.raises(UsageError) as caught:
            detach("vm1", *names, everything=everything, connect="nowhere:///")
        assert 'list_nics("vm1")' in caught.value.hint


def test_which_libvirt_is_said_in_the_call_else_by_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIBVIRT_DEFAULT_URI", "nowhere:///")
    for said, tried in ((None, "nowhere:///"), ("elsewhere:///", "elsewhere:///")):
        with pytest.raises(GuestnetError, match=tried):
            list_nics(connect=said)


@pytest.mark.parametrize(("parent", "vlan"), [("ens3", None), ("ens3.11", None), ("ens3", 11)])
def test_the_mac_of_a_guest_that_is_not_there_is_that_of_the_xml(
    parent: str, vlan: int | None, guestnet: Guestnet
) -> None:
    more = () if vlan is None else ("--vlan", str(vlan))
    told = guestnet("xml", "interface", "web", "--parent", parent, *more).out
    assert re.findall(r'<mac address="(.*)"/>', told) == [mac_of("web", parent, vlan=vlan)]
    assert mac_of("web", parent, vlan=vlan) != mac_of("db", parent, vlan=vlan)
    with pytest.raises(UsageError):
        mac_of("", parent)


KEPT: dict[type, dict[str, Any]] = {
    Attached: {
        "guest": str, "mac": str, "ifname": str, "parent": str, "mode": str, "model": str, "backend": str,
        "live": bool, "config": bool, "pci": str, "carrier": bool | None, "steps": tuple[str, ...],
        "notes": tuple[str, ...], "seconds": float, "dry_run": bool, "changed": bool,
    },
    Detached: {
        "guest": str, "macs": tuple[str, ...], "steps": tuple[str, ...], "notes": tuple[str, ...], "seconds": float,
        "dry_run": bool, "changed": bool,
    },
    ListedNic: {
        "guest": str, "state": str, "interface": str, "parent": str, "vlan": int | None, "mode": str, "mac": str,
        "model": str, "queues": int, "mtu": int | None, "backend": str, "multicast": str, "live": bool, "config": bool,
        "link": str, "pci": str, "carrier": bool | None, "counters": Counters | None, "problems": tuple[str, ...],
    },
    Counters: dict.fromkeys(
        ("rx_packets", "rx_bytes", "rx_dropped", "tx_packets", "tx_bytes", "tx_dropped"), int
    ),
    OpenNic: {
        "fds": tuple[int, ...], "vhost_fds": tuple[int, ...], "pass_fds": tuple[int, ...], "mac": Mac, "ifname": str,
        "arguments": tuple[str, ...], "plan": qemu.Nic,
    },
}  # fmt: skip
"""What programs read of the answers. It stays, with these types; what is new is added here too."""


@pytest.mark.parametrize("answer", KEPT, ids=lambda answer: answer.__name__)
def test_the_fields_of_an_answer_stay_what_they_are(answer: Any) -> None:
    getters = inspect.getmembers(answer, lambda member: isinstance(member, property))
    asked = {name: get_type_hints(getter.fget)["return"] for name, getter in getters if not name.startswith("_")}
    assert get_type_hints(answer) | asked == KEPT[answer]
    assert answer.__dataclass_params__.frozen


def test_an_answer_says_whether_anything_was_done() -> None:
    nic = Attached(
        guest="vm1", mac="52:54:00:00:00:01", ifname="gn525400000001", parent="ens3", mode="bridge", model="virtio",
        backend="macvtap", live=True, config=True, pci="0000:01:00.0", carrier=True, steps=("make it",), notes=(),
        seconds=0.1, dry_run=False,
    )  # fmt: skip
    assert nic.changed
    gone = Detached(guest="vm1", macs=(nic.mac,), steps=nic.steps, notes=(), seconds=0.1, dry_run=True)
    assert not gone.changed
