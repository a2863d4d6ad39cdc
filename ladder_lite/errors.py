"""Errors on the command line: a user's mistake is one line on stderr and exit code 2; a bug keeps its traceback.

Every command line of the package ends with `run(app)`:

    app = typer.Typer(add_completion=False, rich_markup_mode=None)
    if __name__ == "__main__":
        run(app)
"""

import difflib
import errno
import os
import re
import signal
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:  # importing typer takes 0.1 s, and nearly every module of the package imports this one
    import typer

# Some writers raise an error without an errno when the disk is full. safetensors quotes the system's message;
# torch.save has messages of its own, such as "[enforce fail at inline_container.cc:424] . unexpected pos 64 vs 0".
_FULL_DISK_WORDS = ("No space left on device", "PytorchStreamWriter failed writing", "] . unexpected pos ")


class UserError(Exception):
    """A user's mistake or a broken environment; the message is one line with what, where, and the remedy."""

    def __init__(self, message: str) -> None:
        super().__init__(_one_line(message))


class NotFetchedError(UserError):
    """A problem set that must be downloaded first."""


def first_line(error: BaseException) -> str:
    """Return the first line of a library's error message, or the error's type if it has no message."""
    # CUDA and the hub append whole paragraphs of advice.
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def nearest(word: str, known: Iterable[str]) -> str:
    """Return "; did you mean X?" for the most similar known word, or "" if none is similar."""
    # difflib's default of 0.6 would miss two swapped letters in a short word, such as "tyni".
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else ""


def run(app: "typer.Typer") -> NoReturn:
    """Run a command line and exit with 0 (success), 2 (a user's mistake) or 130 (interrupted by Ctrl-C).

    UserError, wrong usage, a full disk and missing permissions print one line `error: ...` on stderr. A
    KeyboardInterrupt prints its own message if it has one. Any other exception is a bug and shows its traceback.
    """
    import typer
    from typer.main import get_command

    command = get_command(app)
    # The base class of usage errors: click's ClickException, or that of the copy of click inside newer versions of
    # typer. It is the second base of BadParameter: BadParameter, UsageError, ClickException.
    usage_error: Any = typer.BadParameter.__mro__[2]
    name = _program_name()
    try:
        # Not app(): it drops the message of a KeyboardInterrupt, and installs an exception hook with its own style of
        # tracebacks.
        with command.make_context(name, sys.argv[1:]) as context:
            command.invoke(context)
        sys.stdout.flush()  # so that a broken pipe is noticed here, where it is handled
    except typer.Exit as exit_:
        sys.exit(exit_.exit_code)
    except (KeyboardInterrupt, typer.Abort) as stop:
        # Otherwise a second Ctrl-C would show a traceback of the clean-up.
        signal.signal(signal.SIGINT, lambda *_: os._exit(130))
        print(f"\n{_one_line(str(stop)) or 'interrupted'}", file=sys.stderr)  # below the "^C" that the terminal echoes
        sys.exit(130)  # 128 + SIGINT, as shells have it
    except UserError as error:
        _fail(str(error))
    except BrokenPipeError:  # the reader of our output has ended, as in `| head`: nothing to report
        # Python flushes stdout once more at exit, which would print an error unless it goes nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Exception as error:
        if isinstance(error, usage_error):
            used = getattr(error, "ctx", None)  # the context of the subcommand, if there is one
            _fail(f"{_usage_message(error, used)}; see {used.command_path if used else name} --help")
        if (line := environment_error(error)) is not None:
            _fail(line)
        raise
    sys.exit(0)


def _usage_message(error: Any, context: Any) -> str:
    message = str(error.format_message()).rstrip(".")
    if "extra argument" not in message or context is None:
        return message
    # Where an argument may begin with a minus, a mistyped option is taken for one.
    known = {name for parameter in context.command.params for name in parameter.opts}
    words = (word.partition("=")[0] for word in sys.argv[1:])
    unknown = next((word for word in words if re.fullmatch(r"--[a-z][\w-]+", word) and word not in known), None)
    return f"No such option: {unknown}{nearest(unknown, known)}" if unknown else message


def _program_name() -> str:
    # With `python -m ladder_lite.report` the spec's name is "ladder_lite.report.__main__"; a script has no spec.
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    if spec is None:
        return Path(sys.argv[0]).name
    return f"python -m {spec.name.removesuffix('.__main__')}"


def environment_error(error: BaseException) -> str | None:
    """Return the message for a full disk or denied access, or None for any other error."""
    cause: BaseException | None = error
    # Libraries wrap the system's error, so the whole chain of `raise ... from` is searched.
    while cause is not None:
        number = cause.errno if isinstance(cause, OSError) else None
        where = f"{cause.filename}: " if isinstance(cause, OSError) and cause.filename else ""
        # EDQUOT: the user's quota is used up, which looks the same to the user.
        if number in (errno.ENOSPC, errno.EDQUOT) or any(words in str(cause) for words in _FULL_DISK_WORDS):
            return f"{where}the disk is full; free some space and run the same command again to resume"
        if number in (errno.EACCES, errno.EPERM, errno.EROFS):
            return f"{where}{os.strerror(number)}; choose a folder you may write to or fix its permissions"
        cause = cause.__cause__
    return None


def _fail(message: str) -> NoReturn:
    print(f"error: {_one_line(message)}", file=sys.stderr)
    sys.exit(2)


def _one_line(text: str) -> str:
    """Return the text on one line, with control characters as escapes: an error can quote a file or model text."""
    # An escape character becomes the four characters \x1b: visible, and without an effect on the terminal.
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in " ".join(text.split()))
