"""The shell blocks of the documentation's pages: which there are, what each calls, and what it shows as the answer.

A block in a page is shell where its fence says so (``sh``, ``console``), and, without a word at the fence, where a
line of it begins with the name of a program. In ``console`` blocks, and where a plain block begins with a prompt, lines
after ``# `` or ``$ `` are commands and the lines below each are what it answers; anything else is a script. What is no
shell says at its fence what it is, ``text`` where it is in no language, and has no prompt: else nobody would see that a
block of shell is not run.

A comment of HTML right before a block is about that block, and unseen where the page is read:

    <!-- not run: needs a switch; tests/libvirt/test_x.py does the same -->     the block is not run, for this reason
    <!-- first: ip link add ens4 type veth -->                                 run before it, to have what it assumes
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token

REPO = Path(__file__).resolve().parents[2]

_SHELL = {"bash", "console", "sh", "shell"}
_HERE = {
    *("bridge", "cat", "cd", "cloud-localds", "echo", "eval", "exec", "export", "guestnet", "install", "ip", "mkdir"),
    *("nft", "ping", "python3", "qemu-img", "qemu-system-x86_64", "tc", "virsh", "virt-install", "virt-xml"),
}
_ELSEWHERE = {
    *("./dev", ".ci/run", "apt", "apt-get", "dnf", "docker", "dpkg", "git", "incus", "journalctl", "modprobe", "pip"),
    *("pipx", "reboot", "sudo", "systemctl", "tests/vm/run", "uv", "vagrant"),
}
"""What would change the machine that the tests run on, or is not there: such a block has to say why it is not run."""
_PROMPT = re.compile(r"(?:[#$] )(?=\S)")
_ASSIGNED = re.compile(r"\w+=\S*")
_COMMENT = re.compile(r"<!--\s*(not run|first):\s*(.*?)\s*-->", re.DOTALL)
_FAILED = re.compile(r"^(?:guestnet|error|Error|E): |: error: |: command not found$", re.MULTILINE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One command of a page, at this line; ``shown`` is what the page has as its answer, None where it has none."""

    line: int
    command: str
    shown: str | None

    @property
    def fails(self) -> bool:
        """Whether the answer shown is an error."""
        return self.shown is not None and _FAILED.search(self.shown) is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """One block of code: ``reason`` is why it is not run, ``first`` what is done before it and not shown."""

    line: int
    text: str
    kind: str
    is_shell: bool
    prompts: bool
    reason: str = ""
    first: str = ""

    @property
    def calls(self) -> tuple[Call, ...]:
        """Its commands one by one; a script is one command."""
        if not self.prompts:
            return (Call(line=self.line, command=self.text, shown=None),)
        return tuple(self._calls())

    @property
    def doubt(self) -> str:
        """Why it may be shell that nobody runs; empty where it is shell, or plainly none."""
        if self.is_shell:
            return ""
        if not self.kind:
            return "no program is known by its first words: say at its fence what it is, text where it is no language"
        found = [line for line in self.text.splitlines() if _is_prompt(line.strip(), of_any=self.kind == "text")]
        return f"it has a prompt and is no console: {found[0]}" if found else ""

    @property
    def is_for_elsewhere(self) -> bool:
        """Whether it would change the machine that the tests run on."""
        return any(_first_word(line) in _ELSEWHERE or (self.is_lab and not _is_lab(line)) for line in self._lines())

    @property
    def is_lab(self) -> bool:
        """Whether it is about labs of its own, and so cannot be run on a host of one."""
        return any(map(_is_lab, self._lines()))

    def _lines(self) -> list[str]:
        lines = [line for call in self.calls for line in call.command.splitlines()]
        return [line for line in lines if line and not line.startswith("#")]

    def _calls(self) -> Iterator[Call]:
        lines = self.text.splitlines()
        starts = [number for number, line in enumerate(lines) if _PROMPT.match(line)]
        for start, end in zip(starts, [*starts[1:], len(lines)], strict=True):
            command = [lines[start][2:]]
            below = start + 1
            while command[-1].endswith("\\") and below < end:
                command.append(lines[below].removeprefix("> "))
                below += 1
            yield Call(line=self.line + start, command="\n".join(command), shown="\n".join(lines[below:end]))


def pages() -> list[Path]:
    """The pages there are for a reader; those made of the command line itself call nothing."""
    found = [REPO / "README.md", *sorted((REPO / "docs").rglob("*.md"))]
    return [path for path in found if path.parent.name != "reference"]


def blocks(text: str) -> list[Block]:
    """The blocks of code of a page in Markdown, in its order, in whatever language."""
    return list(_blocks(MarkdownIt("commonmark").enable("table").parse(text)))


def shell_blocks(text: str) -> list[Block]:
    """Those of them that are shell."""
    return [block for block in blocks(text) if block.is_shell]


def comments(text: str) -> int:
    """How many comments on blocks a page has, wherever they stand."""
    return len(_COMMENT.findall(text))


def _blocks(tokens: list[Token]) -> Iterator[Block]:
    said: dict[str, str] = {}
    for token in tokens:
        if token.type == "html_block":
            said |= dict(_COMMENT.findall(token.content))
            continue
        if token.type in ("fence", "code_block") and token.map is not None:
            kind = token.info.split()[0] if token.info.split() else ""
            prompts = _has_prompts(kind, token.content)
            yield Block(
                line=token.map[0] + (2 if token.type == "fence" else 1),
                text=token.content.rstrip("\n"),
                kind=kind,
                is_shell=kind in _SHELL or (not kind and (prompts or _is_script(token.content))),
                prompts=prompts,
                reason=said.get("not run", ""),
                first=said.get("first", ""),
            )
        said = {}


def _has_prompts(kind: str, text: str) -> bool:
    if kind == "console":
        return True
    found = _PROMPT.match(text)
    return not kind and found is not None and _program(text[found.end() :])


def _is_script(text: str) -> bool:
    return any(map(_program, text.splitlines()))


def _is_prompt(line: str, *, of_any: bool) -> bool:
    """Whether a line is a command after a prompt. In most languages ``# `` is a comment, unless ``of_any`` says not."""
    found = _PROMPT.match(line)
    return found is not None and (of_any or line.startswith("$") or _program(line[found.end() :]))


def _program(line: str) -> bool:
    return _first_word(line) in _HERE | _ELSEWHERE


def _is_lab(line: str) -> bool:
    return line.startswith("guestnet lab ")


def _first_word(line: str) -> str:
    """The program that a line calls, after variables for it."""
    words = line.split() if line[:1].strip() else []
    return next((word for word in words if not _ASSIGNED.fullmatch(word)), "")


# What varies from run to run

_UUID = r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
_VARIES: Mapping[str, tuple[str, str]] = {
    # what it is in a page, and what it may be in an answer
    "mac": (r"\b(?:[0-9a-f]{2}:){5}[0-9a-f]{2}\b", r"((?:[0-9a-f]{2}:){5}[0-9a-f]{2})"),
    "ifname": (r"\bgn[0-9a-f]{12}\b", r"gn([0-9a-f]{12})"),
    "uuid": (rf"\b{_UUID}\b", rf"({_UUID})"),
    "clock": (r"\b\d\d:\d\d:\d\d\b", r"\d\d:\d\d:\d\d"),
    "pci": (r"\b[0-9a-f]{4}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]\b", r"[0-9a-f]{4}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]"),
    "size": (r"\b\d+(?:\.\d+)? (?:[KMG]i)?B\b", r"\d+(?:\.\d+)? (?:[KMG]i)?B"),
    "time": (r"\b\d+(?:\.\d+)?(?= ?m?s\b)", r"\d+(?:\.\d+)?"),
    "process": (r"(?<=\bprocess )\d+", r"\d+"),
    "node": (r"(?<=/dev/tap)\d+", r"\d+"),
    "major": (r"^\d+(?= macvtap$)", r"\d+"),
    "ifindex": (r"^\d+(?=: )", r"\d+"),
    "lines": (r"^[ \t]*…[ \t]*(?:\n|\Z)", r"(?:.*(?:\n|\Z))*?"),
    "any": (r"…", r".*"),
    "rule": (r"[-─]{3,}", r"[-─]{3,}"),
    "space": (r"[ \t]+", r"[ \t]+"),
}
_PARTS = re.compile("|".join(f"(?P<{name}>{said})" for name, (said, _) in _VARIES.items()), re.MULTILINE)


@dataclass(slots=True)
class Same:
    """What the page's MACs and UUIDs are in this run: each is one and the same wherever the page has it."""

    of: dict[str, str] = field(default_factory=dict)

    def command(self, text: str) -> str:
        """The page's command as it is called in this run. What a command is the first to name is as it says."""

        def now(found: re.Match[str]) -> str:
            key = found[0].replace(":", "").removeprefix("gn")
            value = self.of.setdefault(key, key)
            if found.lastgroup == "mac":
                return ":".join(value[at : at + 2] for at in range(0, 12, 2))
            return f"gn{value}" if found.lastgroup == "ifname" else value

        kinds = "|".join(f"(?P<{name}>{_VARIES[name][0]})" for name in ("mac", "ifname", "uuid"))
        return re.sub(kinds, now, text)

    def difference(self, shown: str, answer: str) -> str:
        """Why the answer is not what the page shows; empty where it is."""
        pattern, names = "", []
        at = 0
        shown = "\n".join(line.rstrip() for line in shown.strip("\n").splitlines())
        for found in _PARTS.finditer(shown):
            pattern += re.escape(shown[at : found.start()]) + _VARIES[str(found.lastgroup)][1]
            at = found.end()
            if found.lastgroup in ("mac", "ifname", "uuid"):
                names.append(found[0].replace(":", "").removeprefix("gn"))
        pattern += re.escape(shown[at:])
        got = "\n".join(line.rstrip() for line in answer.strip("\n").splitlines())
        match = re.fullmatch(pattern, got)
        if match is None:
            return "another answer"
        for name, value in zip(names, match.groups(), strict=True):
            now = value.replace(":", "")
            if self.of.setdefault(name, now) != now:
                return f"{name} was {self.of[name]} before, and is {now} here"
        return ""
