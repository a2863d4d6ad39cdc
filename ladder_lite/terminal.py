"""What the terminal shows while a run is under way: bars on a terminal, plain lines in a log.

    with Live() as live, live.progress("train ladder", total=300) as bar:
        bar.set(step, reward=0.42, zero_variance=0.6, test=0.31)
        live.say(f"[green]right[/]  {show(model_text)}")

What a model wrote is hostile: it can hold escape sequences that move the cursor or retitle the window, marks that
reverse the reading order, and square brackets that rich reads as markup. `show` makes it one harmless line.
"""

from __future__ import annotations

import sys
import time
import unicodedata
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.cells import cell_len, set_cell_size
from rich.console import Console, Group, RenderableType
from rich.errors import MarkupError
from rich.live import Live as Screen
from rich.markup import escape
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from ladder_lite.problems.attempts import Attempt

Field = float | str | None

PLAIN_INTERVAL_S = 10.0  # at most one plain line per stage in this time: a ten-hour log stays readable
_REFRESH_PER_S = 2  # the bars share the processor with the training on small machines
_RATE_SPACING_S = 0.5
_RATE_POINTS = 60
_TITLE_WIDTH = 26
_SHARES = {"zero_variance": "zero-variance groups", "test": "test accuracy"}


def one_line(text: str, width: int = 72) -> str:
    """`text` as one printable line of at most `width` terminal columns, without any control or bidi character."""
    line = " ".join(_printable(text[: 50 * width]).split())
    if cell_len(line) > width:
        line = set_cell_size(line, max(width - 3, 0)).rstrip() + "..."[:width]
    return line


def show(text: str, width: int = 72) -> str:
    """`one_line(text)` with rich's markup escaped, to be put into what `Live.say` prints."""
    return escape(one_line(text, width))


def verdict(attempt: Attempt) -> str:
    """What became of an attempt, in colour, for `Live.say`."""
    return "[green]right[/]" if attempt.correct else f"[red]{attempt.grade.reason.value.lower()}[/]"


def percent(share: float) -> str:
    """0.004 as '0.4 %', 0.64 as '64 %': one decimal where whole numbers would hide the value."""
    points = 100 * share
    return f"{points:.0f} %" if 9.95 <= points <= 99 else f"{points:.1f} %".replace(".0 ", " ")


def percent_interval(share: Mapping[str, float]) -> str:
    """A share with its interval: '64 % (32-82)'."""
    low, high = (percent(share[end]).removesuffix(" %") for end in ("low", "high"))
    return f"{percent(share['value'])} ({low}-{high})"


def points_interval(difference: Mapping[str, float]) -> str:
    """A difference of shares in percentage points, with its interval: '+12.0 (+3.5 to +20.1)'."""
    value, low, high = (100 * difference[key] for key in ("value", "low", "high"))
    return f"{value:+.1f} ({low:+.1f} to {high:+.1f})"


def clock_time(seconds: float) -> str:
    """Seconds as '4:31' or '2:04:31'."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class Bar:
    """Progress of one stage; `Live.progress` makes it."""

    def __init__(self, title: str, total: int | None, changed: Callable[[Bar], None], clock: Callable[[], float]):
        self.title = one_line(title)
        self.total = total
        self.done = 0
        self._fields: dict[str, float | str] = {}
        self._changed = changed
        self._clock = clock
        self._started_at = clock()
        self._pace: deque[tuple[float, int]] = deque(maxlen=_RATE_POINTS)

    def advance(self, n: int = 1, **fields: Field) -> None:
        """`n` more units are done; `fields` as in `set`."""
        self.set(self.done + n, **fields)

    def set(self, done: int, **fields: Field) -> None:
        """`done` units are done by now. Fields keep their last value until given again; None is 'not measured'."""
        self.done = done
        self._fields.update({name: value for name, value in fields.items() if value is not None})
        now = self._clock()
        if self._pace and done < self._pace[-1][1]:  # another phase of the stage counts from its own start
            self._pace.clear()
        # The last point is moved until it lies far enough from the one before: thousands of quick updates then
        # still span a useful stretch of time.
        if len(self._pace) >= 2 and self._pace[-1][0] - self._pace[-2][0] < _RATE_SPACING_S:
            self._pace.pop()
        self._pace.append((now, done))
        self._changed(self)

    @property
    def elapsed_s(self) -> float:
        """Seconds since the stage began."""
        return self._clock() - self._started_at

    @property
    def left_s(self) -> float | None:
        """Seconds left at the recent pace; None while unknown.

        The pace counts from the first update, since a resumed stage starts with one big step that cost no time.
        """
        if self.total is None or len(self._pace) < 2:
            return None
        (first_at, first), (last_at, last) = self._pace[0], self._pace[-1]
        if last <= first or last_at <= first_at:
            return None
        at_last = (self.total - last) * (last_at - first_at) / (last - first)
        return max(0.0, at_last - (self._clock() - last_at))

    def count(self) -> str:
        """'120/300', or '120' where the total is unknown."""
        return f"{self.done}" if self.total is None else f"{self.done}/{self.total}"

    def describe_fields(self, separator: str) -> str:
        """The fields as people read them: 'reward 0.42, zero-variance groups 60 %'."""
        return separator.join(_describe(name, value) for name, value in self._fields.items())


class Live:
    """Bars, lines and tables of one run on one console; a context manager that leaves the terminal as it was."""

    def __init__(self, console: Console | None = None, clock: Callable[[], float] = time.monotonic):
        # FORCE_COLOR makes rich believe in a terminal; bars in a log file or a CI page would be a mess all the same.
        force_interactive = None if sys.stdout.isatty() else False
        self.console = console or Console(highlight=False, force_interactive=force_interactive)
        self._clock = clock
        self._open: list[Bar] = []
        self._printed_at: dict[Bar, float] = {}
        self._panel: RenderableType | None = None
        self._screen: Screen | None = None
        if self.console.is_interactive:
            self._screen = Screen(
                console=self.console,
                get_renderable=self._draw,
                refresh_per_second=_REFRESH_PER_S,
                transient=True,
                vertical_overflow="crop",  # rich's ellipsis is a character that not every terminal has
            )

    def __enter__(self) -> Live:
        if self._screen is not None:
            self._screen.start(refresh=True)
        return self

    def __exit__(self, *_: object) -> None:
        if self._screen is None:
            return
        try:
            self._screen.stop()
        finally:
            # A second Ctrl-C may land inside stop(); a terminal without a cursor would outlive the program.
            self.console.show_cursor(True)

    @contextmanager
    def progress(self, title: str, total: int | None = None) -> Iterator[Bar]:
        """A bar for the time of the block, and a line that stays when it ends.

        A stage inside another (one problem of many) leaves no line unless an exception ends it.
        """
        bar = Bar(title, total, self._changed, self._clock)
        inner = bool(self._open)
        self._open.append(bar)
        self._printed_at[bar] = self._clock()
        self._redraw()
        if self._screen is None and not inner:
            self._line(f"{bar.title}: {bar.count()}")
        ending = "stopped at "
        try:
            yield bar
            ending = ""
        finally:
            self._open.remove(bar)
            del self._printed_at[bar]
            self._redraw()
            if ending or not inner:
                after = f"{bar.title}: {ending}{bar.count()} after {clock_time(bar.elapsed_s)}"
                self._line(", ".join(filter(None, (after, bar.describe_fields(", ")))))

    def say(self, text: str) -> None:
        """Print one line of rich markup above the bars; put foreign text into it through `show` only."""
        text = self.encodable(_printable(text))
        try:
            line = Text.from_markup(text, emoji=False)
        except MarkupError:  # somebody's text was not escaped: print it as it stands
            line = Text(text)
        is_log = self._screen is None  # whose lines are neither wrapped nor cut at some assumed width
        self.console.print(line, soft_wrap=is_log, no_wrap=True, overflow="ignore" if is_log else "crop")

    def print(self, renderable: RenderableType) -> None:
        """Print a table or another of rich's renderables above the bars."""
        self.console.print(renderable)

    @property
    def room(self) -> int | None:
        """Lines that a panel below the bars can have; None in a log, which shows no panel."""
        return None if self._screen is None else max(3, self.console.height - 2 * len(self._open) - 2)

    def show_panel(self, panel: RenderableType | None) -> None:
        """Draw something below the bars until the next one is given; a log does not show it."""
        self._panel = panel
        self._redraw()

    def _line(self, text: str) -> None:
        self.console.print(Text(self.encodable(text)), soft_wrap=self._screen is None)

    def _redraw(self) -> None:
        if self._screen is not None:
            self._screen.refresh()

    def encodable(self, text: str) -> str:
        """The text with a question mark for each character that the console cannot show."""
        return text.encode(self.console.encoding, "replace").decode(self.console.encoding)

    def _changed(self, bar: Bar) -> None:
        now = self._clock()
        if self._screen is not None or bar not in self._printed_at or now - self._printed_at[bar] < PLAIN_INTERVAL_S:
            return
        self._printed_at[bar] = now
        left = "" if bar.left_s is None else f"{clock_time(bar.left_s)} left"
        parts = (f"{bar.title}: {bar.count()}", f"{clock_time(bar.elapsed_s)} elapsed", left, bar.describe_fields(", "))
        self._line(", ".join(filter(None, parts)))

    def _draw(self) -> RenderableType:
        rows: list[RenderableType] = []
        for bar in list(self._open):  # a copy: this runs in rich's refresh thread
            rows.append(self._draw_bar(bar))
            if fields := bar.describe_fields("   "):
                line = Text(self.encodable(fields), style="dim", no_wrap=True, overflow="crop")
                rows.append(Padding(line, (0, 0, 0, 2)))
        if self._panel is not None:
            rows.append(self._panel)
        return Group(*rows)

    def _draw_bar(self, bar: Bar) -> Table:
        table = Table.grid(expand=True, padding=(0, 1))
        title_width = min(_TITLE_WIDTH, self.console.width // 3)
        table.add_column(width=title_width, no_wrap=True, overflow="crop")
        table.add_column(ratio=1)
        for _ in range(3):
            table.add_column(justify="right", no_wrap=True, overflow="crop")
        left = bar.left_s
        table.add_row(
            Text(self.encodable(one_line(bar.title, title_width)), style="bold"),
            ProgressBar(total=bar.total, completed=bar.done, pulse=bar.total is None),
            bar.count(),
            clock_time(bar.elapsed_s),
            Text("-:-- left" if left is None else f"{clock_time(left)} left", style="cyan"),
        )
        return table


def _describe(name: str, value: float | str) -> str:
    label = _SHARES.get(name, name.replace("_", " "))
    if isinstance(value, str):
        return f"{label} {one_line(value, 40)}"
    if name in _SHARES:
        return f"{label} {percent(value)}"
    return f"{label} {value}" if isinstance(value, int) else f"{label} {value:.3g}"


def _printable(text: str) -> str:
    """`text` without control, format (bidi marks among them), surrogate and private characters; spaces for breaks."""
    kept: list[str] = []
    marks = 0
    for character in text:
        category = unicodedata.category(character)
        # More than two combining marks on one character pile up over the lines above and below.
        marks = marks + 1 if category[0] == "M" else 0
        if character.isspace():
            kept.append(" ")
        elif category[0] != "C" and marks <= 2:
            kept.append(character)
    return "".join(kept)
