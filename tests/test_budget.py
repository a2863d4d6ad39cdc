"""Time budgets: how they are written, and which work still starts when one runs out."""

import pytest

from ladder_lite.budget import Deadline, OutOfTime
from ladder_lite.errors import UserError
from tests.support.fakes import Clock

BUDGETS = [
    ("9h", 32400),
    ("90m", 5400),
    ("1h30m", 5400),
    ("5400s", 5400),
    ("1h30m5s", 5405),
    (" 2H ", 7200),
    ("0.5h", 1800),
    ("1.5m", 90),
]


@pytest.mark.parametrize(("text", "seconds"), BUDGETS)
def test_a_budget_is_hours_minutes_and_seconds(text: str, seconds: float) -> None:
    clock = Clock()
    deadline = Deadline.after(text, clock)
    reserve = min(60.0, seconds * 0.02)
    clock.seconds = 100 + seconds - reserve - 0.01
    deadline.check()
    clock.seconds += 0.02
    with pytest.raises(OutOfTime, match=f"budget of {text.strip()} used: everything is saved; run the same command"):
        deadline.check()


@pytest.mark.parametrize(
    "text", ["", "9", "h", "9 hours", "1h,5m", "-1h", "1e3s", "0h", "0s", "nan", "infh", "1:30", "٣h"]
)
def test_other_texts_give_one_line_with_the_remedy(text: str) -> None:
    with pytest.raises(UserError, match=r"--budget .*, such as 9h"):
        Deadline.after(text)


def test_work_that_would_not_end_in_time_is_refused() -> None:
    clock = Clock()
    deadline = Deadline.after("1000s", clock)  # of which 20 s are a reserve
    deadline.check(980)
    assert not deadline.allows(981)
    clock.seconds += 500
    deadline.check(480)
    with pytest.raises(OutOfTime):
        deadline.check(481)


def test_without_a_budget_no_work_is_refused() -> None:
    deadline = Deadline.never()
    deadline.check(1e12)
    with deadline.piece("step"):
        pass
    assert deadline.allows(1e12)


def test_a_piece_is_expected_to_be_as_slow_as_the_slowest_recent_one() -> None:
    clock = Clock()
    deadline = Deadline.after("1h", clock)
    assert deadline.expected_s("chunk") == 0
    for seconds in (5, 40, 10):
        with deadline.piece("chunk", size=10):
            clock.seconds += seconds
    assert deadline.expected_s("chunk", size=10) == pytest.approx(40)
    assert deadline.expected_s("chunk", size=5) == pytest.approx(20)
    assert deadline.expected_s("round") == 0
    for _ in range(20):
        deadline.record("chunk", 1, size=10)
    assert deadline.expected_s("chunk", size=10) == pytest.approx(1)


def test_a_piece_that_would_be_cut_off_is_refused_and_one_that_fits_is_done() -> None:
    clock = Clock()
    deadline = Deadline.after("100s", clock)
    done = 0

    def work() -> None:
        nonlocal done
        for _ in range(10):
            with deadline.piece("chunk"):
                clock.seconds += 30
                done += 1

    with pytest.raises(OutOfTime):
        work()
    assert done == 3  # 90 of the 98 seconds
    with deadline.piece("small"):  # the first of its kind, and there is time left
        done += 1
    assert done == 4


def test_a_piece_that_fails_is_not_recorded() -> None:
    clock = Clock()
    deadline = Deadline.after("1h", clock)

    def fail() -> None:
        with deadline.piece("chunk"):
            clock.seconds += 50
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert deadline.expected_s("chunk") == 0


def test_a_part_of_the_work_has_its_own_budget_within_the_whole() -> None:
    clock = Clock()
    whole = Deadline.after("1000s", clock)  # ends at 980
    part = whole.within(100, "100s")  # ends at 98
    clock.seconds += 90
    part.check(8)
    with pytest.raises(OutOfTime, match="budget of 100s used"):
        part.check(9)
    whole.check(800)
    assert whole.within(2_000, "2000s") is whole
    assert not whole.within(-5, "5s").allows()
    assert Deadline.never().within(5, "5s").allows(4.8)
