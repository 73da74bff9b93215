"""The XML that is printed, what libvirt says of it, and what is refused.

tests/unit/golden/xml/ has the commands and their answers, a case is a file; what they read is in its templates/.
"""

import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import libvirt
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lxml import etree

from guestnet import templates
from guestnet.errors import ConflictError, UsageError
from guestnet.guest import xml
from guestnet.model import Backend, LinkName, Mac, Mode, Multicast, VlanProtocol
from tests.unit import golden
from tests.unit.conftest import Guestnet

SCHEMAS = Path("/usr/share/libvirt/schemas")
SHIPPED = sorted(path.name for path in templates.directory().glob("*.xml"))


@pytest.mark.parametrize("path", golden.cases("xml"), ids=golden.title)
def test_the_xml_is_the_one_written_down(path: Path, guestnet: Guestnet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(path.parent)

    def answer(words: list[str]) -> str:
        done = guestnet(*words)
        # libxml2 words its errors differently from release to release
        text = re.sub(r"(is not XML: ).*", r"\1…", done.text)
        return text.replace(str(templates.directory()), "TEMPLATES")

    golden.check(path, answer)


# What libvirt says


class Judge:
    """libvirt's parser (its test driver) and libvirt's schemas."""

    def __init__(self, connection: Any) -> None:
        self.connection = connection
        self.domain_schema = etree.RelaxNG(file=str(SCHEMAS / "domain.rng"))
        self.network_schema = etree.RelaxNG(file=str(SCHEMAS / "network.rng"))

    def domain(self, text: str) -> str:
        """What libvirt makes of the domain XML."""
        self.domain_schema.assertValid(etree.fromstring(text))
        domain = self.connection.defineXML(text)
        try:
            return str(domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE))
        finally:
            domain.undefine()

    def network(self, text: str) -> str:
        """What libvirt makes of the network XML."""
        self.network_schema.assertValid(etree.fromstring(text))
        network = self.connection.networkDefineXML(text)
        try:
            return str(network.XMLDesc(0))
        finally:
            network.undefine()

    def interface(self, text: str) -> xml.Interface:
        """What libvirt makes of an <interface>, in a domain of the shipped template."""
        root: Any = etree.fromstring(templates.read("domain.xml"))
        root.find("devices").append(etree.fromstring(text))
        [found] = xml.interfaces(self.domain(etree.tostring(root, encoding="unicode")))
        return found

    def any(self, text: str) -> object:
        """What libvirt makes of any of the three."""
        return getattr(self, etree.fromstring(text).tag)(text)


@pytest.fixture(scope="module")
def judge() -> Iterator[Judge]:
    libvirt.registerErrorHandler(lambda *_: None, None)
    connection = libvirt.open("test:///default")
    yield Judge(connection)
    connection.close()


@pytest.mark.parametrize("name", SHIPPED)
def test_libvirt_takes_each_shipped_template_as_it_is(name: str, judge: Judge) -> None:
    judge.any(templates.read(name).decode())


@pytest.mark.parametrize("path", golden.cases("xml"), ids=golden.title)
def test_libvirt_takes_what_the_golden_files_print(path: Path, judge: Judge) -> None:
    answers = re.split(r"^\$ .*\n", path.read_text(), flags=re.MULTILINE)[1:]
    for answer in answers:
        if answer.startswith("<"):
            judge.any(answer[: answer.rindex(">") + 1])  # what follows was said on stderr


OPTIONS: dict[str, tuple[tuple[str, ...], ...]] = {
    "backend": ((), ("--backend", "direct")),
    "mode": ((), ("--mode", "vepa"), ("--mode", "private"), ("--mode", "passthru", "--mac", "52:54:00:00:00:01")),
    "model": ((), ("--model", "e1000e"), ("--model", "virtio-transitional", "--queues", "8")),
    "mtu": ((), ("--mtu", "1400")),
    "link": ((), ("--link", "down")),
    "boot order": ((), ("--boot-order", "2")),
    "rates": ((), ("--inbound", "100,200,300", "--outbound", "50")),
}


CHOICES = tuple(tuple(itertools.chain(*ways)) for ways in itertools.product(*OPTIONS.values()))


@pytest.mark.parametrize("words", CHOICES, ids=lambda words: " ".join(words) or "none")
def test_libvirt_takes_an_interface_with_any_options_and_reads_them_as_meant(
    words: tuple[str, ...], judge: Judge, guestnet: Guestnet
) -> None:
    done = guestnet("xml", "interface", "vm1", "--parent", "ens3.11", *words)
    if "--mtu" in words and "direct" in words:
        assert done.status == 2
        return
    assert done.status == 0, done.text
    found = judge.interface(done.out)
    said = dict(itertools.pairwise(words))
    assert found.type == said.get("--backend", "ethernet")
    assert found.model == said.get("--model", "virtio")
    assert found.queues == int(said.get("--queues", "1"))
    assert found.mtu == (1400 if "--mtu" in said else None)
    assert found.link == said.get("--link", "up")
    assert found.boot_order == (2 if "--boot-order" in said else None)
    assert str(found.inbound or "") == said.get("--inbound", "")
    assert str(found.outbound or "") == said.get("--outbound", "")
    if found.type == "direct":
        assert (found.source, found.source_mode) == ("ens3.11", Mode.parse(said.get("--mode", "bridge")).libvirt)
    else:
        assert (found.target, found.managed) == (Mac(found.mac).ifname, False)


def test_a_domain_that_is_defined_from_the_printed_xml_is_known(judge: Judge, guestnet: Guestnet) -> None:
    done = guestnet("xml", "domain", "vm1", "--parent", "ens3", "--parent", "ens4", "--mode", "vepa", "--mtu", "1400")
    kept = judge.domain(done.out)
    records = xml.records(kept, "vm1")
    assert [(nic.parent, nic.mode, nic.mtu) for nic in records] == [("ens3", "vepa", 1400), ("ens4", "vepa", 1400)]
    assert [nic.mac for nic in records] == [nic.mac for nic in xml.interfaces(kept)]


@pytest.mark.parametrize("flags", [0, libvirt.VIR_DOMAIN_AFFECT_CONFIG], ids=["now", "config"])
def test_libvirt_gives_back_the_metadata_it_was_given(flags: int, judge: Judge) -> None:
    wanted = (record(parent="ens3.11", mtu=1400), record(mac="52:54:00:00:00:02", backend=Backend.DIRECT, ifname=""))
    domain = judge.connection.defineXML(templates.read("domain.xml").decode())
    try:
        where = (xml.PREFIX, xml.NAMESPACE, flags)
        domain.setMetadata(libvirt.VIR_DOMAIN_METADATA_ELEMENT, xml.metadata(wanted), *where)
        assert xml.records(domain.XMLDesc(0), "vm1") == wanted
        domain.setMetadata(libvirt.VIR_DOMAIN_METADATA_ELEMENT, xml.metadata(()), *where)
        assert xml.records(domain.XMLDesc(0), "vm1") == ()
    finally:
        domain.undefine()


# What an attach would plug in is what is printed


def test_what_is_printed_names_nothing_of_this_machine_but_its_id(guestnet: Guestnet) -> None:
    first, second = (guestnet("xml", "interface", name, "--parent", "nosuchnic") for name in ("vm1", "vm2"))
    assert first.status == second.status == 0
    assert first.out != second.out
    assert first.out == guestnet("xml", "interface", "vm1", "--parent", "nosuchnic").out


# What is refused


@pytest.mark.parametrize(
    "text",
    [
        "<!DOCTYPE a [<!ENTITY x SYSTEM 'file:///etc/passwd'>]><interface type='ethernet'><a>&x;</a></interface>",
        "<!DOCTYPE a SYSTEM 'http://127.0.0.1:1/a.dtd'><interface type='ethernet'/>",
        "<!DOCTYPE interface><interface type='ethernet'/>",
        "<interface type='ethernet'>&undefined;</interface>",
        "<interface type='ethernet'>",
        "",
        "\x00",
    ],
)
def test_text_that_is_no_plain_xml_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"^the thing (is not XML|has a DTD)"):
        xml.parse(text, "the thing")


def test_an_entity_does_not_read_a_file(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("sesame")
    for where in (f"<a>&x;</a><!-- {secret} -->", "<a b='&x;'/>"):
        with pytest.raises(UsageError) as refused:
            xml.parse(f"<!DOCTYPE a [<!ENTITY x SYSTEM '{secret.as_uri()}'>]>{where}", "the thing")
        assert "sesame" not in str(refused.value)


# Records and metadata


def record(**values: Any) -> xml.Record:
    """A record, of these values and the usual ones."""
    usual: dict[str, Any] = {
        "mac": "52:54:00:00:00:01", "parent": "ens3", "mode": Mode.BRIDGE, "ifname": "tap0",
        "backend": Backend.MACVTAP, "multicast": Multicast.ALL,
    }  # fmt: skip
    values = usual | values
    return xml.Record(**values | {"mac": Mac(values["mac"])})


def domain_with(nics: list[dict[str, str]]) -> str:
    """A domain XML with these attributes in our metadata."""
    root = etree.Element("domain")
    home = etree.SubElement(etree.SubElement(root, "metadata"), f"{{{xml.NAMESPACE}}}attachments")
    for nic in nics:
        etree.SubElement(home, f"{{{xml.NAMESPACE}}}nic", nic)
    return etree.tostring(root, encoding="unicode")


names = st.from_regex(r"[a-z0-9._-]{1,15}", fullmatch=True).filter(lambda text: text not in {".", ".."})
macs = st.integers(1, 2**40 - 1).map(lambda number: "52:" + number.to_bytes(5, "big").hex(":"))
parents = st.from_regex(r"[a-z0-9._-]{1,127}", fullmatch=True).filter(lambda text: text not in {".", ".."})
made = st.builds(
    record, mac=macs, parent=parents, outer=st.sampled_from(VlanProtocol), ifname=names, mode=st.sampled_from(Mode),
    backend=st.sampled_from(Backend),
    multicast=st.sampled_from(Multicast), mtu=st.none() | st.integers(68, 65535),
)  # fmt: skip


@given(st.lists(made, max_size=8, unique_by=lambda nic: nic.mac))
def test_records_come_back_from_the_metadata_as_they_were(nics: list[xml.Record]) -> None:
    text = xml.metadata(nics)
    if text is None:
        assert nics == []
        return
    root = etree.Element("domain")
    # as libvirt files it
    filed = etree.SubElement(etree.SubElement(root, "metadata"), f"{{{xml.NAMESPACE}}}attachments")
    written: Any = etree.fromstring(text)
    for nic in written:
        etree.SubElement(filed, f"{{{xml.NAMESPACE}}}nic", dict(nic.attrib))
    assert xml.records(etree.tostring(root, encoding="unicode"), "vm1") == tuple(nics)


KEYS = ("mac", "parent", "mode", "ifname", "backend", "multicast", "mtu", "outer", "else")
WHOLE = {"mac": "52:54:00:00:00:01", "parent": "ens3", "mode": "bridge", "backend": "macvtap", "multicast": "all"}
xml_text = st.text(st.characters(min_codepoint=32, exclude_categories=("Cs", "Cc", "Cn")), max_size=20)
ODD = ("-1", "0", "1e3", "٣", "1_500", " 1500 ", "65536", "9" * 5000, "vepa", "direct", "802.1ad", "")
odd = xml_text | st.sampled_from(ODD)


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.dictionaries(st.sampled_from(KEYS), odd), max_size=3), st.booleans())
def test_whatever_the_metadata_says_is_a_record_or_a_conflict(nics: list[dict[str, str]], whole: bool) -> None:
    refusal: str | None = None
    try:
        found = xml.records(domain_with([(WHOLE if whole else {}) | nic for nic in nics]), "vm1")
    except ConflictError as error:
        found, refusal = (), error.message
    assert refusal is None or refusal.startswith("the guestnet metadata of vm1 is damaged: ")
    assert refusal is None or refusal.isprintable()
    for nic in found:
        assert Mac(nic.mac) == nic.mac
        assert LinkName(nic.parent) == nic.parent
        assert nic.mtu is None or 68 <= nic.mtu <= 65535


@pytest.mark.parametrize(
    "nics",
    [[WHOLE] * 257, [WHOLE | {"parent": "x" * 11_000_000}], [WHOLE | {"mtu": "9" * 5000}], [WHOLE | {"mac": ""}]],
    ids=["too many", "too long", "a long number", "an empty word"],
)
def test_metadata_that_we_never_write_is_a_conflict(nics: list[dict[str, str]]) -> None:
    with pytest.raises(ConflictError, match="is damaged") as refused:
        xml.records(domain_with(nics), "vm1")
    assert len(refused.value.message) < 500


def test_metadata_of_others_is_not_ours() -> None:
    text = (
        "<domain><metadata><attachments xmlns='urn:guestnet:domain:2'><nic mac='x'/></attachments></metadata></domain>"
    )
    assert xml.records(text, "vm1") == ()
    assert xml.records("<domain><metadata/></domain>", "vm1") == ()
    assert xml.records("<domain/>", "vm1") == ()


@given(st.text(st.characters(), max_size=30))
def test_a_name_is_refused_or_printed_as_it_is(name: str) -> None:
    try:
        root = xml.build_domain(
            templates.read("domain.xml"), name=name, memory=None, vcpus=None, disk=None, virt_type=None,
            interfaces=(), nics=(),
        )  # fmt: skip
    except UsageError:
        return
    assert etree.fromstring(etree.tostring(root)).findtext("name") == name
