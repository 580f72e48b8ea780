"""Runs a flow as a script: its arguments, its last message and its exit code."""

import os
import signal
import sys
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Callable

from flows.process import CommandError, kill_all
from flows.stage import DEFAULT_PROCESSES, PROCESSES  # isort: split

import psutil
from prefect.exceptions import CancelledRun
from prefect.settings import PREFECT_API_URL


def parser(description: str | None) -> ArgumentParser:
    return ArgumentParser(description=description, formatter_class=RawDescriptionHelpFormatter)


def positive(text: str) -> int:
    """Returns the number, for argparse. Raises ValueError if it is not a whole number above 0."""
    if not text.isdigit() or int(text) < 1:
        raise ValueError(text)
    return int(text)


def add_processes(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--processes",
        type=positive,
        default=DEFAULT_PROCESSES,
        metavar="N",
        help=f"processes that train, one for each GPU (default: {PROCESSES}, or 1); the experiment stays the same",
    )


def launch(run: Callable[[], object]) -> int:
    """Run a flow. Returns the exit code: 1 if a stage failed, 2 for a wrong setting or no server, 130 after Ctrl-C."""
    # Prefect sends itself the signal again when the flow has ended. With Python's default handler atexit would be
    # skipped, and Prefect's own server would keep running. After SIGHUP (a closed terminal) so would the stage.
    signal.signal(signal.SIGTERM, _exit)
    if signal.getsignal(signal.SIGHUP) == signal.SIG_DFL:  # not under nohup
        signal.signal(signal.SIGHUP, lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    if PREFECT_API_URL.value() is None:
        signal.signal(signal.SIGINT, _handle_interrupt)
    try:
        run()
    except CommandError as error:
        print(f"\n{error}\nThe cause is in the lines above.", file=sys.stderr)
        return 1
    except ValueError as error:
        print(f"\n{error}", file=sys.stderr)
        return 2
    except CancelledRun as error:
        print(f"\n{error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except RuntimeError as error:
        if "Failed to reach API" not in str(error):
            raise
        print(f"{error}\nStart a server there (prefect server start), or unset PREFECT_API_URL.", file=sys.stderr)
        return 2
    return 0


def _exit(*_: object) -> None:
    sys.exit(143)


def _handle_interrupt(*_: object) -> None:
    """Ends the process at once: Ctrl-C also ends Prefect's own server, and the flow would wait for it for minutes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    print("\nStopping; the state of the training is being saved.", file=sys.stderr, flush=True)
    kill_all()
    for child in psutil.Process().children(recursive=True):
        child.terminate()
    print("Stopped. The same command continues from there.", file=sys.stderr, flush=True)
    os._exit(130)
