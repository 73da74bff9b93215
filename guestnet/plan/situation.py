"""What the plans for a guest look at: the host, the guest and its NICs."""

from dataclasses import dataclass, field

from guestnet.errors import ConflictError
from guestnet.guest import xml
from guestnet.model import Backend, Guest, Mac, Mode, Multicast
from guestnet.plan.host import Host


@dataclass(frozen=True, slots=True, kw_only=True)
class Situation:
    """All that attach, detach and set look at: the host, the guest, the MACs of other guests, and who we are."""

    host: Host
    guest: Guest
    machine_id: str
    other_macs: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Nic:
    """One NIC of a guest on record or of type direct: what the record, the live and the persistent <interface> say."""

    record: xml.Record
    live: xml.Interface | None
    config: xml.Interface | None
    recorded: bool = True

    @property
    def mac(self) -> Mac:
        """Its address."""
        return self.record.mac

    @property
    def interface(self) -> xml.Interface:
        """The live <interface>, or the persistent one where it is not live."""
        found = self.live or self.config
        assert found is not None
        return found


def nics(guest: Guest) -> tuple[Nic, ...]:
    """The guest's NICs that are ours or of type direct, in the order of its XML.

    A record without <interface> (somebody detached it behind our back) is no NIC; see ``lost_records``.
    """
    texts = (guest.live, guest.config)
    records = {record.mac: record for text in reversed(texts) if text for record in xml.records(text, guest.name)}
    live, config = ({nic.mac: nic for nic in xml.interfaces(text)} if text else {} for text in texts)
    found = []
    for mac in dict.fromkeys((*live, *config)):
        shown = live.get(mac) or config[mac]
        record = records.get(Mac(mac))
        if record is None and shown.type == "direct":
            record = xml.Record(
                mac=Mac(mac), parent=shown.source, mode=Mode.parse(shown.source_mode or "vepa"), ifname="",
                backend=Backend.DIRECT, multicast=Multicast.FILTERED,
            )  # fmt: skip
        if record is not None:
            found.append(Nic(record=record, live=live.get(mac), config=config.get(mac), recorded=Mac(mac) in records))
    return tuple(found)


def lost_records(guest: Guest) -> tuple[xml.Record, ...]:
    """The records of a guest that no <interface> belongs to any more."""
    macs = {nic.mac for nic in nics(guest)}
    texts = [text for text in (guest.live, guest.config) if text]
    return tuple(
        {
            record.mac: record for text in texts for record in xml.records(text, guest.name) if record.mac not in macs
        }.values()
    )


def scope(guest: Guest, *, live: bool, config: bool) -> tuple[bool, bool]:
    """Whether a change is for what runs, for the next start, or both: as asked, else as virsh does it.

    Raises ConflictError for live where it does not run, for config where it is transient, and for a running guest
    that takes no change now.
    """
    if not live and not config:
        live, config = guest.live is not None, guest.config is not None
    if live and guest.live is None:
        raise ConflictError(f"{guest.name} does not run", hint="leave --live out: the change is for its next start")
    if config and guest.config is None:
        raise ConflictError(
            f"{guest.name} is transient, it has no configuration", hint="leave --config out: the change is live only"
        )
    if live and guest.unfit:
        raise ConflictError(f"{guest.name} {guest.unfit}", hint="wait, resume or stop it, or use --config alone")
    return live, config
