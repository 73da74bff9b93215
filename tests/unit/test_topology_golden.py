"""What the file of a topology says, as a picture, or what is wrong with it: tests/unit/golden/topology/, a case is a
file."""

from pathlib import Path

import pytest

from tests.unit import golden
from tests.unit.conftest import Guestnet


@pytest.mark.parametrize("path", golden.cases("topology"), ids=golden.title)
def test_the_file_is_drawn_or_refused_as_written_down(
    path: Path, guestnet: Guestnet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    head, _ = golden.split(path.read_text())
    (tmp_path / "net.yaml").write_text(head)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")
    golden.check(path, lambda words: guestnet(*words).text)
