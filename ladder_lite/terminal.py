"""What the terminal shows while a run is under way: bars on a terminal, plain lines in a log.

    with Live() as live, live.progress("train ladder", total=300) as bar:
        bar.set(step, reward=0.42, zero_variance=0.6, test=0.31)
        live.say(f"[green]right[/]  {show(model_text)}")

Model text is untrusted: it can contain escape sequences that move the cursor or retitle the window, bidi marks that
reverse the reading order, and square brackets that rich reads as markup. `show` turns it into one harmless line.
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

# A log gets at most one line per stage in this time, so that the log of a ten-hour run stays readable.
PLAIN_INTERVAL_S = 10.0
_REFRESH_PER_S = 2  # low, because on a small machine the bars compete with training for the processor
# The pace is measured over the last 60 points at least 0.5 s apart: 30 s of quick updates, or 60 slow ones.
_RATE_SPACING_S = 0.5
_RATE_POINTS = 60
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


def percent_interval(share: Mapping[str, float]) -> str:
    """Return a share with its interval: '64 % (32-82)'."""
    low, high = (percent(share[end]).removesuffix(" %") for end in ("low", "high"))
    return f"{percent(share['value'])} ({low}-{high})"


def points_interval(difference: Mapping[str, float]) -> str:
    """Return a difference of shares in percentage points, with its interval: '+12.0 (+3.5 to +20.1)'."""
    value, low, high = (100 * difference[key] for key in ("value", "low", "high"))
    return f"{value:+.1f} ({low:+.1f} to {high:+.1f})"


def clock_time(seconds: float) -> str:
    """Return seconds as '4:31' or '2:04:31'."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class Bar:
    """Progress of one stage, created by `Live.progress`."""

    def __init__(self, title: str, total: int | None, changed: Callable[[Bar], None], clock: Callable[[], float]):
        self.title = one_line(title)
        self.total = total
        self.done = 0
        self._fields: dict[str, float | str] = {}
        self._changed = changed
        self._clock = clock
        self._started_at = clock()
        # Recent updates as (time, units done); the oldest are dropped.
        self._pace: deque[tuple[float, int]] = deque(maxlen=_RATE_POINTS)

    def advance(self, n: int = 1, **fields: Field) -> None:
        """Add `n` units; `fields` as in `set`."""
        self.set(self.done + n, **fields)

    def set(self, done: int, **fields: Field) -> None:
        """Set the number of finished units. A field keeps its last value until set again; None means not measured."""
        self.done = done
        self._fields.update({name: value for name, value in fields.items() if value is not None})
        now = self._clock()
        # A lower count means that the stage's next phase has begun, which has a pace of its own.
        if self._pace and done < self._pace[-1][1]:
            self._pace.clear()
        # Replace the last point until it is far enough from the one before: otherwise thousands of quick updates
        # would fill the deque with points that span too little time to measure a pace.
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
        """Seconds left at the recent pace; None while unknown."""
        # One point gives no pace. The start of the stage is not a point: a resumed stage begins with one update that
        # counts all the earlier work, which took no time now.
        if self.total is None or len(self._pace) < 2:
            return None
        (first_at, first), (last_at, last) = self._pace[0], self._pace[-1]
        if last <= first or last_at <= first_at:
            return None
        at_last = (self.total - last) * (last_at - first_at) / (last - first)
        # Between two updates the time left counts down, but not below 0 if the next one is late.
        return max(0.0, at_last - (self._clock() - last_at))

    def count(self) -> str:
        """Return '120/300', or '120' if the total is unknown."""
        return f"{self.done}" if self.total is None else f"{self.done}/{self.total}"

    def describe_fields(self, separator: str) -> str:
        """Return the fields as people read them: 'reward 0.42, zero-variance groups 60 %'."""
        return separator.join(_describe(name, value) for name, value in self._fields.items())


class Live:
    """Bars, lines and tables of one run on one console; a context manager that restores the terminal on exit."""

    def __init__(self, console: Console | None = None, clock: Callable[[], float] = time.monotonic):
        # With FORCE_COLOR, rich treats any output as a terminal. Colours in a log file are what its user asked for;
        # redrawn bars are not.
        force_interactive = None if sys.stdout.isatty() else False
        self.console = console or Console(highlight=False, force_interactive=force_interactive)
        self._clock = clock
        self._open: list[Bar] = []  # from the outermost stage to the innermost
        self._printed_at: dict[Bar, float] = {}  # when each open bar last wrote a line into a log
        self._panel: RenderableType | None = None
        self._screen: Screen | None = None  # None in a log
        if self.console.is_interactive:
            self._screen = Screen(
                console=self.console,
                get_renderable=self._draw,
                refresh_per_second=_REFRESH_PER_S,
                transient=True,  # bars vanish at the end; the lines above them stay
                vertical_overflow="crop",  # the default draws an ellipsis, which not every terminal can show
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
            # A second Ctrl-C may interrupt stop(), and the shell would be left without a cursor.
            self.console.show_cursor(True)

    @contextmanager
    def progress(self, title: str, total: int | None = None) -> Iterator[Bar]:
        """Show a bar during the block, and print a line that stays when the block ends.

        A stage inside another (one problem of many) prints no line unless an exception ends it.
        """
        bar = Bar(title, total, self._changed, self._clock)
        inner = bool(self._open)
        self._open.append(bar)
        self._printed_at[bar] = self._clock()
        self._redraw()
        # A log has no bar, so a line announces the stage: a long one would otherwise look like a hang.
        if self._screen is None and not inner:
            self._line(f"{bar.title}: {bar.count()}")
        ending = "stopped at "
        try:
            yield bar
            ending = ""  # reached only if the block did not raise
        finally:
            self._open.remove(bar)
            del self._printed_at[bar]
            self._redraw()
            if ending or not inner:
                # "train ladder: 300/300 after 1:40, reward 0.42"
                after = f"{bar.title}: {ending}{bar.count()} after {clock_time(bar.elapsed_s)}"
                self._line(", ".join(filter(None, (after, bar.describe_fields(", ")))))

    def say(self, text: str) -> None:
        """Print one line of rich markup above the bars; foreign text in it must have passed through `show`."""
        # Control characters are removed here too, in case a caller forgot `show`.
        text = self.encodable(_printable(text))
        try:
            line = Text.from_markup(text, emoji=False)  # ":smile:" stays as it is
        except MarkupError:  # unescaped foreign text, such as "[/x]": print it literally
            line = Text(text)
        # rich assumes that a log is 80 columns wide; its lines are neither wrapped nor cut there.
        is_log = self._screen is None
        self.console.print(line, soft_wrap=is_log, no_wrap=True, overflow="ignore" if is_log else "crop")

    def print(self, renderable: RenderableType) -> None:
        """Print a table or another rich renderable above the bars."""
        self.console.print(renderable)

    @property
    def panel_height(self) -> int | None:
        """Lines available to a panel below the bars; None in a log, which shows no panel."""
        # Each open bar takes two lines, itself and its fields; two more are kept for the lines above.
        return None if self._screen is None else max(3, self.console.height - 2 * len(self._open) - 2)

    def show_panel(self, panel: RenderableType | None) -> None:
        """Draw a renderable below the bars until the next call; None removes it. A log does not show it."""
        self._panel = panel
        self._redraw()

    def _line(self, text: str) -> None:
        self.console.print(Text(self.encodable(text)), soft_wrap=self._screen is None)

    def _redraw(self) -> None:
        if self._screen is not None:
            self._screen.refresh()

    def encodable(self, text: str) -> str:
        """Return the text with a question mark for each character that the console's encoding lacks."""
        # Printing such a character would raise UnicodeEncodeError and end the run.
        return text.encode(self.console.encoding, "replace").decode(self.console.encoding)

    def _changed(self, bar: Bar) -> None:
        now = self._clock()
        # On a terminal, rich redraws the bars by itself. A bar that is set after its block has ended prints nothing.
        if self._screen is not None or bar not in self._printed_at or now - self._printed_at[bar] < PLAIN_INTERVAL_S:
            return
        self._printed_at[bar] = now
        left = "" if bar.left_s is None else f"{clock_time(bar.left_s)} left"
        parts = (f"{bar.title}: {bar.count()}", f"{clock_time(bar.elapsed_s)} elapsed", left, bar.describe_fields(", "))
        self._line(", ".join(filter(None, parts)))

    def _draw(self) -> RenderableType:
        rows: list[RenderableType] = []
        for bar in list(self._open):  # a copy, because this runs in rich's refresh thread
            rows.append(self._draw_bar(bar))
            if fields := bar.describe_fields("   "):
                line = Text(self.encodable(fields), style="dim", no_wrap=True, overflow="crop")
                rows.append(Padding(line, (0, 0, 0, 2)))  # indented by two columns
        if self._panel is not None:
            rows.append(self._panel)
        return Group(*rows)

    def _draw_bar(self, bar: Bar) -> Table:
        # train ladder   ━━━━━━━━━━━━━━╺━━━━━━━━━━━━━   120/300 4:31 6:47 left
        table = Table.grid(expand=True, padding=(0, 1))
        title_width = min(_TITLE_WIDTH, self.console.width // 3)
        table.add_column(width=title_width, no_wrap=True, overflow="crop")
        table.add_column(ratio=1)  # the bar takes what the other columns leave
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
