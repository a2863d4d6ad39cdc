"""A user's mistake is one line on stderr and exit code 2; a bug keeps its traceback.

Every command line of the package ends in `run(app)`:

    app = typer.Typer(add_completion=False, rich_markup_mode=None)
    if __name__ == "__main__":
        run(app)
"""

import difflib
import errno
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:  # typer takes a tenth of a second, and every module of the package imports this one
    import typer

# Writers that hide the errno: safetensors quotes the system's words, torch.save has only its own.
_FULL_DISK_WORDS = ("No space left on device", "PytorchStreamWriter failed writing", "] . unexpected pos ")


class UserError(Exception):
    """A user's mistake or a broken environment; the message is one line: what, where, and the remedy."""

    def __init__(self, message: str) -> None:
        super().__init__(_one_line(message))


def first_line(error: BaseException) -> str:
    """The first line of a library's error, which may be paragraphs; its type where it has no words."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def nearest(word: str, known: Iterable[str]) -> str:
    """Return "; did you mean X?" for the known word most like this one, or nothing."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else ""


def run(app: "typer.Typer") -> NoReturn:
    """Run a command line and exit: 0 done, 2 a user's mistake, 130 stopped by Ctrl-C.

    UserError, wrong usage, a full disk and missing permissions print one line `error: ...` on stderr. A
    KeyboardInterrupt prints its own text where it has one. Everything else is a bug and shows its traceback.
    """
    import typer
    from typer.main import get_command

    command = get_command(app)
    usage_error: Any = typer.BadParameter.__mro__[2]  # ClickException, click's or that of the copy newer typers carry
    name = _program_name()
    try:
        # Not app(): its main loop swallows the text of a KeyboardInterrupt and installs its own exception hook.
        with command.make_context(name, sys.argv[1:]) as context:
            command.invoke(context)
        sys.stdout.flush()
    except typer.Exit as exit_:
        sys.exit(exit_.exit_code)
    except (KeyboardInterrupt, typer.Abort) as stop:
        print(f"\n{_one_line(str(stop)) or 'interrupted'}", file=sys.stderr)
        sys.exit(130)
    except UserError as error:
        _fail(str(error))
    except BrokenPipeError:  # the reader of our output left, as `| head` does: nothing to report
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Exception as error:
        if isinstance(error, usage_error):
            _fail(f"{error.format_message().rstrip('.')}; see {name} --help")
        if (line := _environment_error(error)) is not None:
            _fail(line)
        raise
    sys.exit(0)


def _program_name() -> str:
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    if spec is None:
        return Path(sys.argv[0]).name
    return f"python -m {spec.name.removesuffix('.__main__')}"


def _environment_error(error: BaseException) -> str | None:
    """Return the line for a full disk or a refused access, None for anything else."""
    cause: BaseException | None = error
    while cause is not None:
        number = cause.errno if isinstance(cause, OSError) else None
        where = f"{cause.filename}: " if isinstance(cause, OSError) and cause.filename else ""
        if number in (errno.ENOSPC, errno.EDQUOT) or any(words in str(cause) for words in _FULL_DISK_WORDS):
            return f"{where}the disk is full; free some space and run the same command again, it goes on from here"
        if number in (errno.EACCES, errno.EPERM, errno.EROFS):
            return f"{where}{os.strerror(number)}; choose a folder you may write to or fix its permissions"
        cause = cause.__cause__
    return None


def _fail(message: str) -> NoReturn:
    print(f"error: {_one_line(message)}", file=sys.stderr)
    sys.exit(2)


def _one_line(text: str) -> str:
    """Return the text on one line, whatever a file or a model put into it: no line breaks, no control characters."""
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in " ".join(text.split()))
