"""A terminal whose output can be inspected, and hostile texts that would manipulate a terminal."""

import io

from rich.console import Console

HOSTILE = {
    "clear the screen": "\x1b[2J\x1b[H gone",
    "retitle the window": "\x1b]0;pwned\x07 x",
    "overwrite the line": "wrong\rright",
    "backspaces": "no\b\byes",
    "C1 control": "\x9b31mred",
    "reverse the order": "\u202e(x)nis \u2066a\u2069 \u200f b",
    "hidden characters": "a\u200bb\ufeffc\u00add\U000e0041",
    "lines": "a\nb\r\nc\u2028d\x0be\x85f",
    "half a character": "\ud800x",
    "private use": "\ue000x\U0010ffff",
    "pile of marks": "x" + "\u0301" * 500,
    "markup": "[bold red]x[/] [/nothing] [link=https://example.org]x[/link] \\[b] [@click=x()]y[/]",
    "emoji code": ":smile: ok",
    "long": "x+" * 5_000_000,
    "wide": "積" * 100,
}


def a_console(*, terminal: bool, encoding: str = "utf-8") -> tuple[Console, io.BytesIO]:
    """Return a console of 80 columns, and the buffer that it writes to."""
    data = io.BytesIO()
    file = io.TextIOWrapper(data, encoding=encoding, write_through=True)
    return Console(
        file=file,
        force_terminal=terminal,
        force_interactive=terminal,
        width=80,
        color_system=None,
        legacy_windows=False,
    ), data
