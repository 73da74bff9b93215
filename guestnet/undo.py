"""The one way to take back what was begun."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from types import TracebackType
from typing import Any, Self

from guestnet import trail


class Undo:
    """A stack of inverses, run last-first unless the block that made them ends well.

    Push the inverse on the line before the effect, and let it do nothing where the effect did not come about::

        with Undo() as undo:
            undo.push(f"macvtap {wanted.name}", delete_if_there, wanted.name)
            links.add(wanted, parent.index)

    The error that ended the block stays the one that is raised. An inverse that fails does not stop the others; each
    failure is added to that error as a note, so that a person sees what is left behind. A signal that ends an inverse
    in its middle (an impatient second Ctrl-C) is such a failure.

    ``whole`` is what this is a part of, see ``part``.
    """

    def __init__(self, whole: "Undo | None" = None) -> None:
        self._inverses: list[tuple[str, Callable[[], list[str]]]] = []
        self._whole = whole

    def push(self, what: str, inverse: Callable[..., object], *args: Any, **kwargs: Any) -> None:
        """Remember how to take back the effect that follows; ``what`` names it for a person."""

        def take_back() -> list[str]:
            inverse(*args, **kwargs)
            return []

        self._inverses.append((what, take_back))

    @contextmanager
    def part(self, what: str, around: Callable[[], AbstractContextManager[object]]) -> Iterator["Undo"]:
        """A part of the work that is done, and taken back, within ``around()``: with a lock held.

        If the block fails it is taken back before its ``around()`` ends; if something fails later, within another one.
        To keep the part is to keep the whole.
        """
        part = Undo(self)
        self._inverses.append((what, lambda: part._run_within(around)))
        with around():
            try:
                yield part
            except BaseException as error:
                part._note(error)
                raise

    def _run_within(self, around: Callable[[], AbstractContextManager[object]]) -> list[str]:
        if not self._inverses:
            return []
        with around():
            return self.run()

    def drop(self) -> None:
        """Forget the inverse pushed last: its effect was refused, so what it would take back is not ours."""
        self._inverses.pop()

    def keep(self) -> None:
        """Accept everything done so far: nothing pushed until now will be taken back."""
        self._inverses.clear()
        if self._whole is not None:
            self._whole.keep()

    def run(self) -> list[str]:
        """Take everything back now; give one line for each inverse that failed."""
        failures = []
        while self._inverses:
            what, inverse = self._inverses.pop()
            trail.tell(f"take back: {what}".__str__)
            try:
                failures += inverse()
            except BaseException as error:  # every inverse gets its turn, whatever the one before it met
                failures.append(f"not undone: {what}: {str(error) or type(error).__name__}")
        return failures

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.keep()
            return
        self._note(error)

    def _note(self, error: BaseException) -> None:
        for failure in self.run():
            error.add_note(failure)
