"""guestnet xml: the libvirt XML that would be used, from templates that can be copied and changed."""

import shlex
from pathlib import Path
from typing import Annotated, Any

import typer

from guestnet import machine, report, templates
from guestnet.cli import options
from guestnet.errors import UsageError
from guestnet.model import Backend, Mode, Request

xml_app = typer.Typer(
    rich_markup_mode=None, add_completion=False, pretty_exceptions_enable=False, no_args_is_help=True,
    help="Print the libvirt XML of an interface, domain or network. Nothing is looked up and nothing is changed.",
)  # fmt: skip

TemplateOption = Annotated[
    Path | None,
    typer.Option(
        "--template", metavar="FILE", parser=options.file, help="A template of your own, instead of the shipped one."
    ),
]


@xml_app.command()
def interface(
    parent: Annotated[str, typer.Option("--parent", metavar="IFACE[.VID]", help="The link it goes on.")],
    guest: Annotated[
        str | None,
        typer.Argument(metavar="GUEST", help="Whose NIC it is: the MAC is made from the name.", show_default=False),
    ] = None,
    vlan: options.VlanOption = None,
    outer_protocol: options.OuterOption = None,
    mode: options.ModeOption = None,
    mac: options.MacOption = None,
    ifname: options.IfnameOption = None,
    model: options.ModelOption = None,
    queues: options.QueuesOption = None,
    mtu: options.MtuOption = None,
    link: options.LinkOption = None,
    boot_order: options.BootOrderOption = None,
    inbound: options.InboundOption = None,
    outbound: options.OutboundOption = None,
    backend: options.BackendOption = None,
    template: TemplateOption = None,
    json: options.Json = False,
) -> None:
    """Print the <interface> that attach would plug in."""
    if guest is None and mac is None:
        raise UsageError("the MAC is made from the name of the guest, and none was given", hint="give GUEST, or --mac")
    requests = options.requests(
        [parent], [mac] if mac else None, [ifname] if ifname else None, vlan=vlan, outer=outer_protocol, mode=mode,
        backend=backend, model=model, queues=queues, mtu=mtu, multicast=None, link=link, boot_order=boot_order,
        inbound=inbound, outbound=outbound,
    )  # fmt: skip
    own = {backend or Backend.MACVTAP: templates.read_own(template)} if template is not None else {}
    _, [text] = _interfaces(requests, guest or "", own)
    _print(text, json_wanted=json)


@xml_app.command()
def domain(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Its name.", show_default=False)],
    parent: Annotated[
        list[str] | None,
        typer.Option("--parent", metavar="IFACE[.VID]", help="The link of a NIC; several give several NICs."),
    ] = None,
    vlan: options.VlanOption = None,
    outer_protocol: options.OuterOption = None,
    memory: Annotated[
        int | None,
        typer.Option("--memory", metavar="MIB", parser=options.number("a size in MiB"), help="Memory, in MiB.  [1024]"),
    ] = None,
    vcpus: Annotated[
        int | None,
        typer.Option("--vcpus", metavar="N", parser=options.number("a count of CPUs"), help="Virtual CPUs.  [1]"),
    ] = None,
    disk: Annotated[
        Path | None,
        typer.Option(
            "--disk", metavar="FILE", parser=options.file, help="A disk image: qcow2 by that suffix, else raw."
        ),
    ] = None,
    virt_type: Annotated[
        str | None, typer.Option("--virt-type", metavar="kvm|qemu", help="KVM, or QEMU's own emulation.  [kvm]")
    ] = None,
    mode: options.ModeOption = None,
    mac: options.MacsOption = None,
    ifname: options.IfnamesOption = None,
    model: options.ModelOption = None,
    queues: options.QueuesOption = None,
    mtu: options.MtuOption = None,
    multicast: options.MulticastOption = None,
    link: options.LinkOption = None,
    boot_order: options.BootOrderOption = None,
    inbound: options.InboundOption = None,
    outbound: options.OutboundOption = None,
    backend: options.BackendOption = None,
    template: TemplateOption = None,
    json: options.Json = False,
) -> None:
    """Print a <domain> with NICs on these parents, and room for more by hot-plug.

    A domain defined from it is known to guestnet. Its macvtaps have to be there before it starts: the attach of the
    same guest and parents makes them.
    """
    from guestnet.guest import xml

    parents = parent or []
    if boot_order is not None and len(parents) > 1:
        raise UsageError("one boot order cannot be for several NICs", hint="copy a <boot order=…> for each of them")
    for value, option in ((memory, "--memory"), (vcpus, "--vcpus")):
        if value == 0:
            raise UsageError(f"{option} 0 is too little for a guest", hint="give 1 or more, or leave it out")
    if virt_type not in (None, "kvm", "qemu"):
        raise UsageError(f"{virt_type!r} is not one of kvm, qemu", hint="qemu runs anywhere, kvm is fast")
    xml.check_name(name, "guest")
    requests = options.requests(
        parents, mac, ifname, vlan=vlan, outer=outer_protocol, mode=mode, backend=backend, model=model, queues=queues,
        mtu=mtu, multicast=multicast, link=link, boot_order=boot_order, inbound=inbound, outbound=outbound,
    )  # fmt: skip
    nics, texts = _interfaces(requests, name, {})
    root = xml.build_domain(
        templates.read("domain.xml") if template is None else templates.read_own(template),
        name=name, memory=memory, vcpus=vcpus, disk=None if disk is None else str(disk.absolute()),
        virt_type=virt_type, interfaces=[xml.parse(text, "the interface") for text in texts],
        nics=[xml.record(nic) for nic in nics],
    )  # fmt: skip
    _print(xml.text_of(root), json_wanted=json)
    if parents and backend is not Backend.DIRECT:
        words = [name, *(word for nic in nics for word in ("--parent", nic.parent))]
        again = shlex.join([*words, *(("--outer-protocol", outer_protocol) if outer_protocol is not None else ())])
        report.note(f"its macvtaps are made by: guestnet attach {again}, after virsh define")


@xml_app.command()
def network(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Its name.", show_default=False)],
    parent: Annotated[
        list[str], typer.Option("--parent", metavar="IFACE", help="A link guests go on; libvirt picks one of several.")
    ],
    mode: options.ModeOption = None,
    template: TemplateOption = None,
    json: options.Json = False,
) -> None:
    """Print a <network> that pools parents for type='network' NICs of libvirt's own."""
    from guestnet.guest import xml
    from guestnet.plan.unseen import device_unseen

    parents = dict.fromkeys(device_unseen(one) for one in parent)
    data = templates.read("network.xml") if template is None else templates.read_own(template)
    root = xml.build_network(data, name=name, parents=parents, mode=mode or Mode.BRIDGE)
    _print(xml.text_of(root), json_wanted=json)


def _interfaces(requests: tuple[Request, ...], guest: str, own: dict[Backend, bytes]) -> tuple[Any, list[str]]:
    from guestnet.plan.steps import Plug
    from guestnet.plan.unseen import attach_unseen

    made = attach_unseen(requests, guest, machine.machine_id(), templates=templates.interfaces(own))
    return made.nics, [step.xml for step in made.steps if isinstance(step, Plug)]


def _print(text: str, *, json_wanted: bool) -> None:
    if json_wanted:
        report.as_json({"xml": text})
    else:
        report.document(text)
