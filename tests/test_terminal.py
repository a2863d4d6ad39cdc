import re
import unicodedata

import pytest
from rich.cells import cell_len
from rich.table import Table
from rich.text import Text

from ladder_lite.terminal import PLAIN_INTERVAL_S, Live, clock_time, counted, one_line, percent, reason_word, show
from tests.support.fakes import Clock
from tests.support.terminal import HOSTILE, a_console


def visible(line: str) -> str:
    """The text that rich prints for one line of markup."""
    return Text.from_markup(line, emoji=False).plain


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE.keys())
@pytest.mark.parametrize("width", [0, 2, 40])
def test_one_line_is_harmless(text: str, width: int) -> None:
    line = one_line(text, width)
    assert cell_len(line) <= width
    assert not [c for c in line if unicodedata.category(c)[0] == "C" or (c.isspace() and c != " ")]
    assert not re.search("[\u0300-\u036f]{3}", line)


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE.keys())
def test_show_escapes_markup(text: str) -> None:
    assert visible(show(text)) == one_line(text)
    assert visible(f"[green]{show(text)}[/green] end") == f"{one_line(text)} end"


@pytest.mark.parametrize(
    ("text", "width", "expected"),
    [
        ("x*exp(x)", 72, "x*exp(x)"),
        ("  a\n\tb  ", 72, "a b"),
        ("\x1b[31mred", 72, "[31mred"),
        ("0123456789", 10, "0123456789"),
        ("0123456789a", 10, "0123456..."),
        ("積積積積積", 8, "積積..."),
        ("e\u0301", 72, "e\u0301"),
    ],
)
def test_one_line_keeps_readable_text(text: str, width: int, expected: str) -> None:
    assert one_line(text, width) == expected


@pytest.mark.parametrize(
    ("share", "expected"),
    [(0, "0 %"), (0.004, "0.4 %"), (0.02, "2 %"), (0.0996, "10 %"), (0.64, "64 %"), (0.996, "99.6 %"), (1, "100 %")],
)
def test_percent(share: float, expected: str) -> None:
    assert percent(share) == expected


def test_numbers_with_nouns() -> None:
    assert [counted(n, "token") for n in (0, 1, 1917)] == ["0 tokens", "1 token", "1,917 tokens"]


def test_reasons_as_words() -> None:
    reasons = ("CORRECT", "UNPARSEABLE", "NO_ANSWER", "FROM_ANOTHER_VERSION")
    assert [reason_word(reason) for reason in reasons] == ["right", "unreadable", "no answer", "from another version"]


@pytest.mark.parametrize(("seconds", "expected"), [(0.9, "0:00"), (271, "4:31"), (7471.5, "2:04:31")])
def test_clock_time(seconds: float, expected: str) -> None:
    assert clock_time(seconds) == expected


def test_a_log_has_the_start_the_end_and_few_lines_between() -> None:
    clock, (console, data) = Clock(), a_console(terminal=False)
    with Live(console, clock) as live, live.progress("train ladder", 1000) as bar:
        for done in range(1, 1001):
            clock.seconds += PLAIN_INTERVAL_S / 400
            bar.set(done, reward=0.5, zero_variance=0.25, test=None)
        clock.seconds += 1
    assert data.getvalue().decode().splitlines() == [
        "train ladder: 0/1000",
        "train ladder: 400/1000, 0:10 elapsed, 0:16 left, reward 0.5, zero-variance groups 25 %",
        "train ladder: 800/1000, 0:20 elapsed, 0:06 left, reward 0.5, zero-variance groups 25 %",
        "train ladder: 1000/1000 after 0:26, reward 0.5, zero-variance groups 25 %",
    ]


def test_an_inner_stage_prints_a_line_only_if_it_fails() -> None:
    console, data = a_console(terminal=False)
    with Live(console, Clock()) as live, live.progress("outer"):
        with live.progress("inner", 3) as bar:
            bar.set(3)
        with pytest.raises(ZeroDivisionError), live.progress("failing", 3):
            _ = 1 / 0
    assert data.getvalue().decode().splitlines() == [
        "outer: ...",
        "failing: stopped at 0/3 after 0:00",
        "outer: done after 0:00",
    ]


@pytest.mark.parametrize(
    ("updates", "left"),
    [
        ([], None),
        ([(5, 50)], None),  # a resumed stage: its first update says nothing about the pace
        ([(5, 50), (15, 60)], 40.0),
        ([(5, 50), (15, 60), (25, 80)], 14.0),
        ([(5, 50), (15, 60), (16, 58)], 42.0),  # steps that were rolled back
        ([(1, 10), (2, 120)], 0.0),
    ],
)
def test_time_left(updates: list[tuple[float, int]], left: float | None) -> None:
    clock, (console, _) = Clock(), a_console(terminal=False)
    with Live(console, clock) as live, live.progress("x", 100) as bar:
        start = clock.seconds
        for after, done in updates:
            clock.seconds = start + after
            bar.set(done)
        assert bar.task.time_remaining == left


def test_time_left_follows_the_recent_pace() -> None:
    clock, (console, _) = Clock(), a_console(terminal=False)
    with Live(console, clock) as live, live.progress("x", 100_000) as bar:
        for done in range(1, 51_001):
            clock.seconds += 0.001 if done <= 50_000 else 1  # fast at first, then one a second
            bar.set(done)
        assert bar.task.time_remaining == pytest.approx(49_000, rel=0.01)


@pytest.mark.parametrize("terminal", [True, False])
@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "latin-1"])
def test_hostile_text_never_reaches_a_console(terminal: bool, encoding: str) -> None:
    console, data = a_console(terminal=terminal, encoding=encoding)
    with Live(console) as live:
        for text in HOSTILE.values():
            with live.progress(text, 2) as bar:
                bar.set(1, answer=text)
                live.say(show(text))
                live.say(text[:200])  # a caller forgot `show`
    written = data.getvalue().decode(encoding)
    ours = re.sub(r"\x1b\[(\?25[hl]|2K|1A)", "", written) if terminal else written
    assert not set(ours) & {"\x1b", "\x07", "\x08", "\x9b", "\u202e", "\u200b", "\ufeff"}
    assert "ok" in ours
    if not terminal:
        assert "\r" not in ours


def test_say_removes_markup_in_a_log() -> None:
    console, data = a_console(terminal=False)
    with Live(console) as live:
        live.say(f"[green]right[/]  {show('[red]' + 'x' * 200, width=150)}")
    assert data.getvalue().decode() == "right  [red]" + "x" * 142 + "...\n"


def test_a_terminal_shows_bars_and_is_restored_after_ctrl_c() -> None:
    console, data = a_console(terminal=True)

    def work() -> None:
        with Live(console) as live, live.progress("train ladder", 300) as bar:
            bar.set(120, reward=0.42, zero_variance=0.6, test=0.31)
            live.print(Table("a table"))
            live.say("a line")
            live._bars.refresh()  # as rich's thread does twice a second
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        work()
    written = data.getvalue().decode()
    assert re.search(r"train ladder\s+━.*120/300 0:00:00 --:--", written)
    assert "reward 0.42   zero-variance groups 60 %   test accuracy 31 %" in written
    assert all(cell_len(line) <= 80 for line in re.sub(r"\x1b\[[?0-9]*[a-zA-Z]", "", written).splitlines())
    assert written.rindex("\x1b[?25h") > written.rindex("\x1b[?25l")  # the cursor is visible again
    tail = re.sub(r"\x1b\[[?0-9]*[a-zA-Z]|\r", "", written[written.rindex("train ladder: stopped at 120/300") :])
    assert tail.splitlines()[0].startswith("train ladder: stopped at 120/300 after 0:00, reward 0.42")
    assert "━" not in tail


@pytest.mark.parametrize("terminal", [True, False])
def test_a_panel_is_drawn_below_the_bars_of_a_terminal(terminal: bool) -> None:
    console, data = a_console(terminal=terminal)
    with Live(console) as live, live.progress("its GRPO", 30):
        assert (live.panel_height is not None) is terminal
        live.show_panel(Text("the panel"))
    written = data.getvalue().decode()
    assert ("the panel" in written) is terminal
    if terminal:
        assert written.index("its GRPO") < written.index("the panel")


@pytest.mark.parametrize("force", ["1", ""])
def test_a_log_has_no_bars_even_with_forced_colours(
    force: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", force)
    with Live() as live, live.progress("x", 2) as bar:
        bar.set(1)
    assert capsys.readouterr().out.splitlines() == ["x: 0/2", "x: 1/2 after 0:00"]
