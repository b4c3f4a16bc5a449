"""`iolane`: the verbs gathered, and one place where errors, Ctrl-C and signals become exit codes."""

from __future__ import annotations

import os
import signal
import sys
import traceback

from iolane._version import __version__
from iolane.cli import signals
from iolane.cli.signals import Terminated
from iolane.errors import IolaneError

FAILED, USAGE = 1, 2
SIGNALLED = 128
"""A process that a signal ends has 128 + its number as exit code, as in a shell."""


def main(arguments: list[str] | None = None) -> None:
    """The console script: runs one verb and exits with its code."""
    given = sys.argv[1:] if arguments is None else arguments
    if given in (["--version"], ["-V"]):
        print(f"iolane {__version__}")
        return
    signals.install()
    debug = (
        bool(os.environ.get("IOLANE_DEBUG"))
        or "--debug" in given[: given.index("--") if "--" in given else None]
    )
    try:
        code = _dispatch(given, debug)
        sys.stdout.flush()
    except BaseException as error:
        if debug and not isinstance(error, SystemExit | KeyboardInterrupt | Terminated):
            traceback.print_exc()
        code = _exit_code(error, debug)
    sys.exit(code)


def _dispatch(arguments: list[str], debug: bool) -> int:
    from iolane.cli.app import app

    _configure_logging(debug)
    return app(args=arguments, prog_name="iolane", standalone_mode=False) or 0


def _configure_logging(debug: bool) -> None:
    """What devices and servers have to say goes to stderr, a line each; tracebacks only with --debug."""
    import logging

    class OneLine(logging.Formatter):
        """Without the traceback, but with what it ended in."""

        def format(self, record: logging.LogRecord) -> str:
            error = record.exc_info[1] if record.exc_info else None
            said = record.getMessage() + (f": {type(error).__name__}: {error}" if error else "")
            return f"iolane: {' '.join(said.split())}"

    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(name)s: %(message)s") if debug else OneLine())
    logging.basicConfig(handlers=[handler], level=logging.INFO if debug else logging.WARNING)


def _exit_code(error: BaseException, debug: bool) -> int:
    """Say in one line what went wrong; the exit code that goes with it."""
    match error:
        case SystemExit():
            return error.code if isinstance(error.code, int) else FAILED
        case IolaneError():
            _explain(error)
            return FAILED
        case KeyboardInterrupt():
            return SIGNALLED + signal.SIGINT
        case Terminated():
            return SIGNALLED + error.number
        case BrokenPipeError():
            _discard_stdout()
            return SIGNALLED + signal.SIGPIPE
        case OSError():
            _say(f"{error.filename}: {error.strerror}" if error.filename else str(error))
            return FAILED
    if hasattr(error, "format_message"):  # a usage error of the command line parser
        return _usage_error(error)
    if type(error).__name__ == "Abort":
        return SIGNALLED + signal.SIGINT
    hint = "" if debug else " (this is a defect of iolane; --debug shows where)"
    _say(f"{type(error).__name__}: {error}{hint}")
    return FAILED


def _explain(error: IolaneError) -> None:
    """One line with the remedy; what a machine said before it went (more lines) beneath."""
    first, *details = error.message.strip().splitlines() or [""]
    _say(f"{first} ({error.remedy})" if error.remedy else first)
    for line in details:
        print(f"  {line}", file=sys.stderr)


def _usage_error(error: BaseException) -> int:
    context = getattr(error, "ctx", None)
    text = " ".join(str(error.format_message()).split()).rstrip(".")  # type: ignore[attr-defined]
    if type(error).__name__ == "NoArgsIsHelpError" and context is not None:
        print(context.get_help(), file=sys.stderr)
        return USAGE
    where = context.command_path if context is not None else "iolane"
    _say(f"{text[:1].lower()}{text[1:]} (see {where} --help)")
    return int(getattr(error, "exit_code", USAGE))


def _say(line: str) -> None:
    print(f"iolane: {' '.join(line.split())}", file=sys.stderr)


def _discard_stdout() -> None:
    """Nobody reads any more: keep the interpreter from complaining when it flushes at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
