"""What the terminal shows while a run is under way: bars on a terminal, plain lines in a log.

    with Live() as live, live.progress("train ladder", total=300) as bar:
        bar.set(step, reward=0.42, zero_variance=0.6, test=0.31)
        live.say(f"[green]right[/]  {show(model_text)}")

Model text is untrusted: it can contain escape sequences that move the cursor or retitle the window, bidi marks that
reverse the reading order, and square brackets that rich reads as markup. `show` turns it into one harmless line.
"""

from __future__ import annotations

import io
import sys
import time
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich import box
from rich.cells import cell_len, set_cell_size
from rich.console import Console, RenderableType
from rich.errors import MarkupError
from rich.markup import escape
from rich.padding import Padding
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Column, Table
from rich.text import Text

from ladder_lite.problems.attempts import Attempt

Field = float | str | None

# A log gets at most one line per stage in this time, so that the log of a ten-hour run stays readable.
PLAIN_INTERVAL_S = 10.0
_REFRESH_PER_S = 2  # low, because on a small machine the bars compete with training for the processor
_PACE_PERIOD_S = 1800.0  # the pace is that of this time: a step on a GPU may take minutes
_TITLE_WIDTH = 26  # long enough for "train rl_without_variants"
# Fields that are shown as a percentage, and under which name.
_SHARES = {"zero_variance": "zero-variance groups", "test": "test accuracy"}


def one_line(text: str, width: int = 72) -> str:
    """Return the text as one printable line of at most `width` terminal columns, without control or bidi characters."""
    # Cutting first bounds the work: a reply can have megabytes, and no line needs more of it than this.
    line = " ".join(_printable(text[: 50 * width]).split())
    if cell_len(line) > width:
        # Columns, not characters: a CJK character takes two. Three dots, since not every console has an ellipsis.
        line = set_cell_size(line, max(width - 3, 0)).rstrip() + "..."[:width]
    return line


def show(text: str, width: int = 72) -> str:
    """Return `one_line(text)` with rich's markup escaped, for use in the argument of `Live.say`."""
    return escape(one_line(text, width))


def reason_word(reason: str) -> str:
    """Return a grade's reason as people read it: 'CORRECT' as 'right', 'NO_ANSWER' as 'no answer'."""
    # The same words as in the figures and tables of reports.
    words = {"CORRECT": "right", "UNPARSEABLE": "unreadable", "FORBIDDEN": "refused"}
    # A row of another version can have a reason that this one does not know, hence `one_line`.
    return words.get(reason, one_line(reason).lower().replace("_", " "))


def verdict(attempt: Attempt) -> str:
    """Return an attempt's grade in colour, for `Live.say`."""
    return f"[{'green' if attempt.correct else 'red'}]{reason_word(attempt.grade.reason.value)}[/]"


def counted(n: int, noun: str) -> str:
    """Return a number with its noun, which takes an s unless the number is 1: '1 variant', '1,917 tokens'."""
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


def percent(share: float) -> str:
    """Return 0.004 as '0.4 %' and 0.64 as '64 %': one decimal below 10 % and above 99 %, where rounding matters."""
    points = 100 * share
    # From about 9.95 on, one decimal would round to "10.0".
    return f"{points:.0f} %" if 9.95 <= points <= 99 else f"{points:.1f} %".replace(".0 ", " ")


def plain_table(first: str) -> Table:
    """Return an empty table whose first column is cropped if it is too wide."""
    # "crop", because rich's default ends a cropped cell in an ellipsis, which is not ASCII.
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0), pad_edge=False, title_style="bold")
    table.add_column(first, no_wrap=True, overflow="crop")
    return table


def percent_interval(share: Mapping[str, float]) -> str:
    """Return a share with its interval: '64 % (32-82)'."""
    low, high = (percent(share[end]).removesuffix(" %") for end in ("low", "high"))
    return f"{percent(share['value'])} ({low}-{high})"


def points_interval(difference: Mapping[str, float]) -> str:
    """Return a difference of shares in percentage points, with its interval: '+12.0 (+3.5 to +20.1)'."""
    value, low, high = (100 * difference[key] for key in ("value", "low", "high"))
    if low == high == 0:  # the conditions agree on every problem, so resampling problems changes nothing
        return "0.0 (no difference)"
    return f"{value:+.1f} ({low:+.1f} to {high:+.1f})"


def clock_time(seconds: float) -> str:
    """Return seconds as '4:31' or '2:04:31'."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class Bar:
    """Progress of one stage, created by `Live.progress`."""

    def __init__(self, title: str, task: Task, update: Callable[[Bar, int, dict[str, Any]], None]) -> None:
        self.title = one_line(title)
        self.task = task  # rich's: the units done, their total, the fields, the times
        self.printed_at = task.get_time()
        self._update = update

    def set(self, done: int, **fields: Field) -> None:
        """Set the number of finished units. A field keeps its last value until set again; None means not measured."""
        self._update(self, done, {name: value for name, value in fields.items() if value is not None})

    def count(self) -> str:
        """Return '120/300', or '' if the total is unknown."""
        return "" if self.task.total is None else f"{self.task.completed}/{self.task.total}"


class _Bars(Progress):
    """rich's bars, with the fields of each below it and a panel below them all."""

    panel: RenderableType | None = None

    def get_renderables(self) -> Iterator[RenderableType]:
        for task in self.tasks:
            yield self.make_tasks_table([task])
            if task.fields:
                line = Text("   ".join(_describe(task)), "dim", no_wrap=True, overflow="crop")
                yield Padding(line, (0, 0, 0, 2))  # indented by two columns
        if self.panel is not None:
            yield self.panel


class Live:
    """Bars, lines and tables of one run on one console; a context manager that restores the terminal on exit."""

    def __init__(self, console: Console | None = None, clock: Callable[[], float] = time.monotonic):
        # With FORCE_COLOR, rich treats any output as a terminal. Colours in a log file are what its user asked for;
        # redrawn bars are not.
        force_interactive = None if sys.stdout.isatty() else False
        self.console = console or Console(highlight=False, force_interactive=force_interactive)
        # A character that the console's encoding lacks would otherwise raise UnicodeEncodeError and end the run.
        if isinstance(self.console.file, io.TextIOWrapper):
            self.console.file.reconfigure(errors="replace")
        self._is_log = not self.console.is_interactive
        self._bars = _Bars(
            # train ladder   ━━━━━━━━━━━━━━╺━━━━━━━━━━━━━   120/300 0:04:31 06:47
            TextColumn(
                "{task.description}", "bold", markup=False, table_column=Column(width=_TITLE_WIDTH, no_wrap=True)
            ),
            BarColumn(bar_width=None),  # takes what the other columns leave
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(compact=True),
            console=self.console,
            refresh_per_second=_REFRESH_PER_S,
            speed_estimate_period=_PACE_PERIOD_S,
            transient=True,  # bars vanish at the end; the lines above them stay
            get_time=clock,
            disable=self._is_log,
            expand=True,
        )
        self._bars.live.vertical_overflow = "crop"  # the default draws an ellipsis, which not every terminal can show

    def __enter__(self) -> Live:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._bars.stop()
        finally:
            # A second Ctrl-C may interrupt stop(), and the shell would be left without a cursor.
            if not self._is_log:
                self.console.show_cursor(True)

    @contextmanager
    def progress(self, title: str, total: int | None = None) -> Iterator[Bar]:
        """Show a bar during the block, and print a line that stays when the block ends.

        A stage inside another (one problem of many) prints no line unless an exception ends it.
        """
        is_inner = bool(self._bars.tasks)
        task_id = self._bars.add_task(one_line(title, _TITLE_WIDTH), total=total)
        bar = Bar(title, self._bars.tasks[-1], self._update)
        # A log has no bar, so a line announces the stage: a long one would otherwise look like a hang.
        if self._is_log and not is_inner:
            self._line(f"{bar.title}: {bar.count() or '...'}")
        ending = "stopped"
        try:
            yield bar
            ending = ""  # reached only if the block did not raise
        finally:
            self._bars.remove_task(task_id)
            self._bars.refresh()
            if ending or not is_inner:
                # "train ladder: 300/300 after 1:40, reward 0.42", "load embedded: done after 0:09"
                state = " at ".join(filter(None, (ending, bar.count()))) or "done"
                self._line(f"{bar.title}: {state} after {clock_time(bar.task.elapsed or 0)}", *_describe(bar.task))

    def _update(self, bar: Bar, done: int, fields: dict[str, Any]) -> None:
        task = bar.task
        self._bars.update(task.id, completed=done, **fields)
        # On a terminal, rich redraws the bars by itself.
        if self._is_log and task.get_time() - bar.printed_at >= PLAIN_INTERVAL_S:
            bar.printed_at = task.get_time()
            left = [] if task.time_remaining is None else [f"{clock_time(task.time_remaining)} left"]
            elapsed = f"{clock_time(task.elapsed or 0)} elapsed"
            self._line(f"{bar.title}: {bar.count()}", elapsed, *left, *_describe(task))

    def say(self, text: str) -> None:
        """Print one line of rich markup above the bars; foreign text in it must have passed through `show`."""
        # Control characters are removed here too, in case a caller forgot `show`.
        text = _printable(text)
        try:
            line = Text.from_markup(text, emoji=False)  # ":smile:" stays as it is
        except MarkupError:  # unescaped foreign text, such as "[/x]": print it literally
            line = Text(text)
        # rich assumes that a log is 80 columns wide; its lines are neither wrapped nor cut there.
        self.console.print(line, soft_wrap=self._is_log, no_wrap=True, overflow="ignore" if self._is_log else "crop")

    def print(self, renderable: RenderableType) -> None:
        """Print a table or another rich renderable above the bars."""
        self.console.print(renderable)

    @property
    def panel_height(self) -> int | None:
        """Lines available to a panel below the bars; None in a log, which shows no panel."""
        # Each open bar takes two lines, itself and its fields; two more are kept for the lines above.
        return None if self._is_log else max(3, self.console.height - 2 * len(self._bars.tasks) - 2)

    def show_panel(self, panel: RenderableType | None) -> None:
        """Draw a renderable below the bars until the next call; None removes it. A log does not show it."""
        self._bars.panel = panel
        self._bars.refresh()

    def _line(self, *parts: str) -> None:
        self.console.print(Text(", ".join(parts)), soft_wrap=self._is_log)


def _describe(task: Task) -> list[str]:
    """Return the fields of a stage as people read them: 'reward 0.42', 'zero-variance groups 60 %'."""
    fields = list(task.fields.items())  # a copy, because this may run in rich's refresh thread
    return [_describe_field(name, value) for name, value in fields]


def _describe_field(name: str, value: float | str) -> str:
    label = _SHARES.get(name, name.replace("_", " "))
    if isinstance(value, str):
        return f"{label} {one_line(value, 40)}"
    if name in _SHARES:
        return f"{label} {percent(value)}"
    return f"{label} {value}" if isinstance(value, int) else f"{label} {value:.3g}"


def _printable(text: str) -> str:
    """Return the text without control, format, surrogate and private-use characters; white space becomes spaces."""
    kept: list[str] = []
    marks = 0  # combining marks in a row
    for character in text:
        category = unicodedata.category(character)
        # More than two combining marks on one character would overlap the lines above and below.
        marks = marks + 1 if category[0] == "M" else 0
        if character.isspace():
            kept.append(" ")
        # The C categories: Cc has escape and other control characters, Cf the bidi marks and zero-width characters.
        elif category[0] != "C" and marks <= 2:
            kept.append(character)
    return "".join(kept)
