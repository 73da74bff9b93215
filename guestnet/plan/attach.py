"""The plan of an attach."""

from collections.abc import Collection
from dataclasses import dataclass, replace

from guestnet.errors import ConflictError, GuestnetError, UsageError
from guestnet.guest import xml
from guestnet.model import (
    LIVE_MODES,
    Attachment,
    Backend,
    Guest,
    Kind,
    Link,
    LinkState,
    Mac,
    Mode,
    Multicast,
    NewLink,
    Request,
    guest_alias,
)
from guestnet.plan.host import Host
from guestnet.plan.metadata import rewrite_metadata
from guestnet.plan.nic import check_model
from guestnet.plan.parent import (
    MTU_MAX,
    Parent,
    check_guest_mode,
    check_mac,
    check_mtu,
    check_parent,
    describe,
    make_link,
    make_parent,
    parent_notes,
    parent_on_record,
    resolve_parent,
)
from guestnet.plan.repair import mend_link
from guestnet.plan.situation import Nic, Situation, is_of_guest, nics, scope
from guestnet.plan.steps import InstallHook, LinkStep, Plug, SetUp, Step

_WORDS = {
    "mtu": "MTU", "ifname": "interface name", "queues": "count of queues", "boot_order": "boot order",
    "inbound": "inbound rate", "outbound": "outbound rate",
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Attaching:
    """The plan of one attach: each NIC as it will be, the steps of all, and what a person should be told."""

    nics: tuple[Attachment, ...]
    steps: tuple[Step, ...]
    notes: tuple[str, ...]
    live: bool
    config: bool


def attach(
    requests: tuple[Request, ...],
    now: Situation,
    *,
    live: bool,
    config: bool,
    templates: dict[Backend, bytes],
    own: Collection[Backend] = (),
) -> Attaching:
    """The plan that gives a guest these NICs; no steps where it has them all.

    ``own`` says which of the templates are the user's. Raises what any of the checks raises; nothing has changed then.
    """
    live, config = scope(now.guest, live=live, config=config)
    existing = nics(now.guest, now.host)
    host = before = now.host
    places: list[tuple[object, ...]] = []
    steps: list[Step] = []
    notes: list[str] = []
    wanted: list[Attachment] = []
    fresh: list[tuple[Attachment, bool, bool]] = []
    forgotten: list[tuple[Attachment, bool, bool]] = []
    for mac in (request.mac for request in requests if request.mac is not None):
        if sum(1 for request in requests if request.mac == mac) > 1:
            raise UsageError(f"the MAC {mac} is asked for twice", hint="give each NIC its own")
    for request in requests:
        _check_said(request)
        now = replace(now, host=host)
        parent = resolve_parent(request.parent, request.vlan, host, request.outer)
        place = resolve_parent(request.parent, request.vlan, before, request.outer)
        ordinal = places.count(place.identity)
        places.append(place.identity)
        old = _same_nic(request, place, ordinal, existing, before)
        if old is not None:
            attachment = _kept(request, old, parent, now.guest.name, here=_is_on(old, place, before))
            missing_live, missing_config = live and old.live is None, config and old.config is None
            if not old.recorded and attachment.backend is Backend.MACVTAP:
                forgotten.append((attachment, live, config))
            notes += _kept_notes(request, old, now.guest.name)
            if own and not (missing_live or missing_config):
                if attachment.backend in own:
                    xml.build_interface(attachment, templates[attachment.backend])  # it has to be one all the same
                notes.append(f"the template is for a new NIC: {attachment.mac} is there, and stays as it is")
        else:
            attachment = _new(request, parent, ordinal, now)
            missing_live, missing_config = live, config
        twin = next((nic for nic in wanted if nic.mac == attachment.mac), None)
        if twin is not None:
            raise UsageError(f"the NIC {attachment.mac} is asked for twice", hint="name each NIC once")
        wanted.append(attachment)
        if attachment.backend is Backend.MACVTAP:
            made = _links(attachment, parent, now)
        else:
            check_parent(parent, host, mode=attachment.mode if old is None else None)
            made = make_parent(parent)
        if (now.hook or now.no_hook) and not live and (old is None or old.live is None):
            made = ()  # its start makes them
        if missing_live or missing_config or attachment.backend is Backend.MACVTAP:
            steps += made
            notes += _parent_notes(parent, made)
            host = _with(host, parent, attachment if made else None)
        if missing_live or missing_config:
            fresh.append((attachment, missing_live, missing_config))
    if any(missing for _, missing, _ in fresh):
        _check_slots(now.guest, [nic for nic, missing, _ in fresh if missing])
    if now.no_hook and config:
        steps.append(InstallHook(path=now.no_hook))
        why = "it makes the links of a guest that starts"
        notes.append(f"libvirt's hook {now.no_hook} is installed with the first configured NIC: {why}")
    steps += _remember(now.guest, [*fresh, *forgotten])
    for nic, into_live, into_config in fresh:
        text = xml.text_of(xml.build_interface(nic, templates[nic.backend]))
        steps.append(Plug(guest=now.guest.name, mac=nic.mac, xml=text, live=into_live, config=into_config))
    return Attaching(nics=tuple(wanted), steps=tuple(steps), notes=tuple(notes), live=live, config=config)


def _same_nic(request: Request, parent: Parent, ordinal: int, existing: tuple[Nic, ...], host: Host) -> Nic | None:
    if request.mac is not None:
        return next((nic for nic in existing if nic.mac == request.mac), None)
    if request.ifname is not None:
        return next((nic for nic in existing if nic.record.ifname == request.ifname), None)
    candidates = [nic for nic in existing if _is_on(nic, parent, host)]
    return candidates[ordinal] if ordinal < len(candidates) else None


def _is_on(nic: Nic, parent: Parent, host: Host) -> bool:
    """Whether the NIC's parent on record is this one, however either was said."""
    record = nic.record
    if record.parent == parent.device:
        return True
    try:
        return parent_on_record(record.parent, record.outer, host).identity == parent.identity
    except GuestnetError:
        return record.parent == parent.name


def _kept(request: Request, old: Nic, parent: Parent, guest: str, *, here: bool) -> Attachment:
    """The attachment as it is; ``here`` on that parent. Raises ConflictError where the request says otherwise."""
    record, shown = old.record, old.interface
    kept = Attachment(
        parent=record.parent, mac=record.mac, mode=record.mode, ifname=record.ifname, backend=record.backend,
        model=shown.model, queues=shown.queues, mtu=record.mtu, multicast=record.multicast, link=shown.link,
        boot_order=shown.boot_order, inbound=shown.inbound, outbound=shown.outbound, outer=record.outer,
        device=parent.device,
    )  # fmt: skip
    detach = f"guestnet detach {guest} {record.mac}"
    if not here:
        raise ConflictError(
            f"the NIC {record.mac} of {guest} is on {record.parent} already, not on {parent.name}",
            hint=f"detach it first: {detach}",
        )
    check_model(request.model or shown.model, request.queues)
    check_mtu(request.mtu, parent)
    said = ("mode", "ifname", "backend", "model", "queues", "mtu", "multicast", "link", "boot_order", "inbound",
            "outbound")  # fmt: skip
    for name in said:
        asked, has = getattr(request, name), getattr(kept, name)
        if asked is not None and asked != has:
            settable = name in ("mtu", "link", "inbound", "outbound") or {asked, has} <= LIVE_MODES
            if record.backend is Backend.DIRECT and (name == "mtu" or (name == "mode" and old.live is not None)):
                settable = False  # libvirt changes neither
            first = (
                f"guestnet set {guest} {record.mac} --{name} {asked}" if settable else f"{detach}, then attach again"
            )
            second = "" if asked is Mode.PASSTHRU else f", or give --mac for a second NIC on {record.parent}"
            raise ConflictError(
                f"{guest} has a NIC on {record.parent} already, {record.mac}, whose {_WORDS.get(name, name)} is "
                f"{'not set' if has is None else has}, not {asked}",
                hint=first + second,
            )
    return kept


def _kept_notes(request: Request, old: Nic, guest: str) -> list[str]:
    """What a person should be told of a NIC that is there: one that libvirt made is none of ours."""
    record = old.record
    if old.recorded or record.backend is not Backend.DIRECT or request.backend is Backend.DIRECT:
        return []
    instead = f"guestnet detach {guest} {record.mac}, then attach again"
    return [f"{record.mac} is libvirt's own (type='direct'), in mode {record.mode}; for one of guestnet's: {instead}"]


def _new(request: Request, parent: Parent, ordinal: int, now: Situation) -> Attachment:
    backend = request.backend or Backend.MACVTAP
    model = request.model or "virtio"
    _check_device(request, backend, model, now.guest)
    mode = request.mode or Mode.BRIDGE
    check_parent(parent, now.host)
    check_mtu(request.mtu, parent)
    mac = request.mac or _free_mac(parent, ordinal, now, another=request.ifname is not None)
    if mode is Mode.PASSTHRU and backend is Backend.MACVTAP:
        if request.mac is not None and request.mac != parent.base.mac:
            raise ConflictError(
                f"in mode passthru the guest has the MAC of {parent.name}, {parent.base.mac}; {request.mac} would be "
                "ignored by the kernel",
                hint="leave --mac out",
            )
        mac = Mac(parent.base.mac)
    ifname = "" if backend is Backend.DIRECT else str(request.ifname or mac.ifname)
    taken = now.host.find(ifname) if ifname else None
    mine = taken is not None and is_of_guest(taken, now.guest, mac)
    # a link that an earlier attach left is no rival of this one
    rivals = replace(now.host, links=tuple(link for link in now.host.links if not (mine and link is taken)))
    check_parent(parent, rivals, mode=mode)
    if mode is not Mode.PASSTHRU or backend is Backend.DIRECT:
        check_mac(mac, parent, rivals)
    _check_guest_macs(mac, now)
    if taken is not None and not mine:
        raise ConflictError(
            f"the interface name {ifname} is taken by {describe(taken, now.host)}", hint="choose another with --ifname"
        )
    mtu = request.mtu
    if mtu is None and backend is Backend.MACVTAP and model.startswith("virtio") and parent.base.mtu != 1500:
        mtu = min(parent.base.mtu, MTU_MAX)  # the guest would send 1500 by itself
    return Attachment(
        parent=parent.name, mac=mac, mode=mode, ifname=ifname, backend=backend, model=model,
        queues=request.queues or 1, mtu=mtu,
        multicast=request.multicast or (Multicast.ALL if backend is Backend.MACVTAP else Multicast.FILTERED),
        link=request.link or LinkState.UP, boot_order=request.boot_order, inbound=request.inbound,
        outbound=request.outbound, outer=parent.outer, device=parent.device,
    )  # fmt: skip


def _check_said(request: Request) -> None:
    """Raise UsageError for what is wrong whatever the guest has."""
    check_guest_mode(request.mode)
    if request.boot_order is not None and request.boot_order < 1:
        raise UsageError(f"{request.boot_order} is not a boot order", hint="whole numbers from 1")
    if request.model is not None:
        check_model(request.model, request.queues)


def _free_mac(parent: Parent, ordinal: int, now: Situation, *, another: bool) -> Mac:
    """The address derived for the NIC of that number; for ``another`` NIC beside those there are, the first unused."""
    taken = {nic.mac for text in (now.guest.live, now.guest.config) if text for nic in xml.interfaces(text)}
    mac = Mac.derive(now.machine_id, now.guest.name, parent.name, ordinal)
    while another and mac in taken:
        ordinal += 1
        mac = Mac.derive(now.machine_id, now.guest.name, parent.name, ordinal)
    return mac


def _check_device(request: Request, backend: Backend, model: str, guest: Guest) -> None:
    check_model(model, request.queues)
    if backend is Backend.DIRECT:
        if request.mtu is not None:
            raise UsageError(
                "libvirt takes no MTU for a macvtap of its own (type='direct')",
                hint="leave --backend direct out, or set the MTU of the parent",
            )
        if request.multicast is not None:
            raise UsageError(
                "with --backend direct libvirt sets the multicast filter from the guest's (trustGuestRxFilters)",
                hint="leave --multicast out",
            )
        if request.ifname is not None:
            raise UsageError(
                "with --backend direct libvirt names the macvtap itself at each start", hint="leave --ifname out"
            )
    listed = any(text and xml.boots_by_list(text) for text in (guest.live, guest.config))
    if request.boot_order is not None and listed:
        raise ConflictError(
            f"{guest.name} boots by <os><boot dev=…>, which libvirt does not take together with --boot-order",
            hint=f"replace it by <boot order=…> in its devices: virsh edit {guest.name}",
        )


def _check_guest_macs(mac: Mac, now: Situation) -> None:
    other = now.other_macs.get(mac)
    if other is not None:
        raise ConflictError(f"{mac} is a MAC of the guest {other}", hint="give another with --mac")
    for text in (now.guest.live, now.guest.config):
        if text and any(nic.mac == mac for nic in xml.interfaces(text)):
            raise ConflictError(f"{mac} is the MAC of another NIC of {now.guest.name}", hint="give another with --mac")


def _links(nic: Attachment, parent: Parent, now: Situation) -> tuple[LinkStep, ...]:
    """The steps that make the macvtap of a NIC; none where it stands. Raises ConflictError where another does."""
    there = now.host.find(nic.ifname)
    new = NewLink(
        kind=Kind.MACVTAP, name=nic.ifname, parent=parent.device, mode=nic.mode, mac=nic.mac, mtu=nic.mtu,
        multicast=nic.multicast, alias=guest_alias(now.guest.uuid, now.guest.name),
    )  # fmt: skip
    if there is None:
        running = next((old for old in nics(now.guest, now.host) if old.mac == nic.mac and old.live is not None), None)
        if running is not None:
            raise ConflictError(
                f"the macvtap {nic.ifname} of the running guest {now.guest.name} is gone, its NIC is dead",
                hint=f"guestnet repair {now.guest.name}",
            )
        check_parent(parent, now.host, mode=nic.mode)
        return (*make_parent(parent), *make_link(new, quiet=True))
    lower = now.host.below(there)
    if there.guest_uuid == now.guest.uuid and there.kind == "macvtap" and there.mac != nic.mac:
        raise ConflictError(
            f"{nic.ifname} has the MAC {there.mac}, the NIC of {now.guest.name} has {nic.mac}: nothing reaches it",
            hint=f"ip link set {nic.ifname} address {nic.mac}",
        )
    if not is_of_guest(there, now.guest, nic.mac) or there.kind != "macvtap" or there.mac != nic.mac:
        copied = there.guest_uuid and any(old.mac == nic.mac for old in nics(now.guest, now.host))
        again = f"guestnet detach {now.guest.name} {nic.mac}, then attach again"
        raise ConflictError(
            f"the interface name {nic.ifname} is taken by {describe(there, now.host)}"
            + (f" of the guest {there.guest_name}" if copied else ""),
            hint=again if copied else "choose another with --ifname",
        )
    if lower is None or lower != parent.link:
        raise ConflictError(
            f"{nic.ifname} is {describe(there, now.host)}, not on {nic.parent}",
            hint=f"guestnet detach {now.guest.name} {nic.mac}, then attach again",
        )
    return mend_link(there, new, parent, now.host)


def _parent_notes(parent: Parent, steps: tuple[LinkStep, ...]) -> list[str]:
    rising = {step.name for step in steps if isinstance(step, SetUp)}
    notes = [f"{link.readable} was down and is brought up" for link in parent.down if link.name in rising]
    return notes + parent_notes(parent) if steps else notes


def _with(host: Host, parent: Parent, nic: Attachment | None) -> Host:
    """The host as it will be after these steps, for the next NIC of the same plan to be checked against; the macvtap
    is in use then, whosever it is."""
    if nic is None:
        return host
    host = host.after(make_parent(parent))
    lower = host.find(parent.device)
    links = host.links
    if nic.ifname and lower is not None:
        index = min(0, *(link.index for link in links)) - 1
        links += (
            Link(index=index, name=nic.ifname, kind="macvtap", mac=nic.mac, mode=nic.mode, parent=lower.index, up=True),
        )
    return replace(host, links=links)


def _check_slots(guest: Guest, new: list[Attachment]) -> None:
    assert guest.live is not None
    for model in dict.fromkeys(nic.model for nic in new):
        count = sum(1 for nic in new if nic.model == model)
        free = xml.free_slots(guest.live, model)
        if free is not None and free < count:
            bridge = "pcie-to-pci-bridge" if model in xml.CONVENTIONAL_MODELS else "pcie-root-port"
            raise ConflictError(
                f"{guest.name} has no free PCI slot to hot-plug a NIC of model {model}"
                if not free
                else f"{guest.name} has too few free PCI slots for hot-plug: {count} are needed, {free} free",
                hint=f"attach with --config and restart it, or add {bridge} controllers: virsh edit {guest.name}",
            )


def _remember(guest: Guest, fresh: list[tuple[Attachment, bool, bool]]) -> tuple[Step, ...]:
    live_new = [xml.record(nic) for nic, into_live, _ in fresh if into_live]
    config_new = [xml.record(nic) for nic, _, into_config in fresh if into_config]
    return rewrite_metadata(guest, add_live=live_new, add_config=config_new)
