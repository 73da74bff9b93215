"""The step that keeps a guest's metadata as its NICs are."""

from collections.abc import Sequence

from guestnet.guest import xml
from guestnet.model import Guest
from guestnet.plan.steps import Remember, Step


def rewrite_metadata(
    guest: Guest,
    *,
    add_live: Sequence[xml.Record] = (),
    add_config: Sequence[xml.Record] = (),
    drop_live: frozenset[str] = frozenset(),
    drop_config: frozenset[str] = frozenset(),
) -> tuple[Step, ...]:
    """The step that changes the metadata by these records, live and in the configuration; none where nothing changes.

    A record replaces the one with its MAC.
    """
    texts: dict[str, str | None] = {}
    for where, text, add, drop in (
        ("live", guest.live, add_live, drop_live),
        ("config", guest.config, add_config, drop_config),
    ):
        if text is None or not (add or drop):
            continue
        old = xml.records(text, guest.name)
        rows = {record.mac: record for record in old if record.mac not in drop}
        rows |= {record.mac: record for record in add}
        if tuple(rows.values()) != old:
            texts[where] = xml.metadata(rows.values())
    if not texts:
        return ()
    return (
        Remember(
            guest=guest.name, live="live" in texts, config="config" in texts, live_text=texts.get("live"),
            config_text=texts.get("config"),
        ),
    )  # fmt: skip
