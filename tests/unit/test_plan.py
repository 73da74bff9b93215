"""What attach, detach and set would do in each situation, or why not: tests/unit/golden/plan/, a case is a file.

The words of the command go through the real command line; only the look at the host is replaced, by the values that
the file describes (tests/unit/plan_cases.py).
"""

from pathlib import Path
from typing import Any

import pytest

import guestnet.attachment as verbs
from guestnet import templates
from guestnet.model import Backend, Request
from guestnet.plan import attach as attaching
from guestnet.plan import change as changing
from guestnet.plan import detach as detaching
from tests.unit import golden, plan_cases
from tests.unit.conftest import Guestnet


class Planner:
    """In the place of the verbs of guestnet.attachment: plans, and remembers the plan."""

    def __init__(self, head: str) -> None:
        self.now, self.show = plan_cases.read(head)
        self.made: Any = None

    def attach(
        self,
        guest: str,
        requests: tuple[Request, ...],
        options: verbs.Options,
        *,
        own_templates: dict[Backend, bytes] | None = None,
    ) -> verbs.Outcome:
        kept = templates.interfaces(own_templates)
        return self._planned(
            guest,
            attaching.attach(
                requests, self.now, live=options.live, config=options.config, templates=kept, own=own_templates or ()
            ),
        )

    def detach(
        self, guest: str, names: tuple[str, ...], options: verbs.Options, *, everything: bool = False
    ) -> verbs.Outcome:
        return self._planned(
            guest,
            detaching.detach(names, self.now, everything=everything, live=options.live, config=options.config),
        )

    def change(self, guest: str, name: str, wanted: changing.Change, options: verbs.Options) -> verbs.Outcome:
        return self._planned(guest, changing.change(name, wanted, self.now, live=options.live, config=options.config))

    def _planned(self, guest: str, made: Any) -> verbs.Outcome:
        assert guest == self.now.guest.name
        self.made = made
        return verbs.Outcome(
            guest=guest,
            nics=(),
            steps=made.steps,
            notes=(),
            live=made.live,
            config=made.config,
            seconds=0,
            dry_run=True,
        )

    def told(self) -> str:
        """What a dry run does not say: the notes, and the XML if it is to be shown."""
        lines = [f"note: {note}" for note in getattr(self.made, "notes", ())]
        for step in self.made.steps if self.show and self.made is not None else ():
            texts = [getattr(step, name, None) for name in ("xml", "live_text", "config_text")]
            for text in dict.fromkeys(text for text in texts if text is not None):
                lines += [f"{step}:", *("  " + line for line in text.splitlines())]
        return "".join(line + "\n" for line in lines)


@pytest.mark.parametrize("path", golden.cases("plan"), ids=golden.title)
def test_the_plan_is_the_one_written_down(path: Path, guestnet: Guestnet, monkeypatch: pytest.MonkeyPatch) -> None:
    head, _ = golden.split(path.read_text())
    monkeypatch.chdir(golden.DIRECTORY / "xml")  # where templates/ is

    def answer(words: list[str]) -> str:
        planner = Planner(head)
        for verb in ("attach", "detach", "change"):
            monkeypatch.setattr(verbs, verb, getattr(planner, verb))
        shown = guestnet(*words).text
        return shown + planner.told()

    golden.check(path, answer)
