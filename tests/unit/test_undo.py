"""Undo: last first, each its turn, and the first error stays the one that is raised."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import pytest

from guestnet.undo import Undo

Order = list[str]


def failing(text: str) -> Callable[[], None]:
    def fail() -> None:
        raise OSError(text)

    return fail


def end_badly(fill: Callable[[Undo, Order], None], error: BaseException) -> Order:
    """What is taken back, in its order, after ``fill`` and then the error."""
    order: Order = []
    caught: BaseException | None = None
    try:
        with Undo() as undo:
            fill(undo, order)
            raise error
    except type(error) as raised:
        caught = raised
    assert caught is error
    return order


def push(undo: Undo, order: Order, *words: str) -> None:
    for word in words:
        undo.push(word, order.append, word)


def test_what_ended_badly_is_taken_back_last_first() -> None:
    assert end_badly(lambda undo, order: push(undo, order, "one", "two"), ValueError()) == ["two", "one"]


def test_what_ended_well_stays() -> None:
    order: Order = []
    with Undo() as undo:
        push(undo, order, "one")
    assert order == []


def test_what_was_kept_stays_though_the_rest_is_taken_back() -> None:
    def fill(undo: Undo, order: Order) -> None:
        push(undo, order, "one")
        undo.keep()
        push(undo, order, "two")

    assert end_badly(fill, ValueError()) == ["two"]


def test_an_effect_that_was_refused_is_not_taken_back() -> None:
    def fill(undo: Undo, order: Order) -> None:
        push(undo, order, "one", "two")
        undo.drop()

    assert end_badly(fill, ValueError()) == ["one"]


def test_a_failed_inverse_stops_no_other_and_is_a_note_of_the_first_error() -> None:
    def fill(undo: Undo, order: Order) -> None:
        push(undo, order, "one")
        undo.push("two", failing("no"))
        undo.push("three", failing("never"))

    error = ValueError("first")
    assert end_badly(fill, error) == ["one"]
    assert error.__notes__ == ["not undone: three: never", "not undone: two: no"]


@pytest.mark.parametrize("end", [KeyboardInterrupt, SystemExit])
def test_an_interrupt_is_taken_back_like_an_error(end: type[BaseException]) -> None:
    assert end_badly(lambda undo, order: push(undo, order, "one"), end()) == ["one"]


@pytest.mark.parametrize("end", [KeyboardInterrupt, SystemExit])
def test_an_inverse_that_is_interrupted_stops_no_other(end: type[BaseException]) -> None:
    def interrupted() -> None:
        raise end

    def fill(undo: Undo, order: Order) -> None:
        push(undo, order, "one")
        undo.push("two", interrupted)

    error = ValueError("first")
    assert end_badly(fill, error) == ["one"]
    assert error.__notes__ == [f"not undone: two: {end.__name__}"]


def test_an_inverse_gets_the_words_it_was_given_and_runs_once() -> None:
    given: list[tuple[tuple[int, ...], dict[str, int]]] = []

    def note(*args: int, **kwargs: int) -> None:
        given.append((args, kwargs))

    undo = Undo()
    undo.push("note", note, 1, 2, three=3)
    assert undo.run() == []
    assert undo.run() == []
    assert given == [((1, 2), {"three": 3})]


def within(order: Order) -> Callable[[], AbstractContextManager[None]]:
    """A lock that says when it is taken and given back."""

    @contextmanager
    def around() -> Iterator[None]:
        order.append("lock")
        try:
            yield
        finally:
            order.append("unlock")

    return around


def test_a_part_that_fails_is_taken_back_before_its_lock_is_given_back() -> None:
    def fill(undo: Undo, order: Order) -> None:
        push(undo, order, "one")
        with undo.part("part", within(order)) as part:
            push(part, order, "two", "three")
            raise error

    error = ValueError()
    assert end_badly(fill, error) == ["lock", "three", "two", "unlock", "one"]


def test_a_part_is_taken_back_in_its_turn_and_with_its_lock_where_a_later_step_fails() -> None:
    def fill(undo: Undo, order: Order) -> None:
        push(undo, order, "one")
        with undo.part("part", within(order)) as part:
            push(part, order, "two")
            part.push("three", failing("no"))
        order.append("later")
        push(undo, order, "four")

    error = ValueError()
    assert end_badly(fill, error) == ["lock", "unlock", "later", "four", "lock", "two", "unlock", "one"]
    assert error.__notes__ == ["not undone: three: no"]


def test_a_part_in_which_nothing_was_begun_takes_no_lock_again() -> None:
    def fill(undo: Undo, order: Order) -> None:
        with undo.part("part", within(order)):
            pass

    assert end_badly(fill, ValueError()) == ["lock", "unlock"]


def test_a_part_whose_lock_is_not_had_again_is_a_note() -> None:
    turns = iter([within([])])

    def around() -> AbstractContextManager[None]:
        turn = next(turns, None)
        if turn is None:
            raise OSError("busy")
        return turn()

    def fill(undo: Undo, order: Order) -> None:
        with undo.part("part", around) as part:
            push(part, order, "one")

    error = ValueError()
    assert end_badly(fill, error) == []
    assert error.__notes__ == ["not undone: part: busy"]


def test_to_keep_a_part_is_to_keep_what_was_before_it_too() -> None:
    def fill(undo: Undo, order: Order) -> None:
        push(undo, order, "one")
        with undo.part("part", within(order)) as part:
            push(part, order, "two")
            part.keep()
            push(part, order, "three")

    assert end_badly(fill, ValueError()) == ["lock", "unlock"]
