"""A flow that is run as a script ends with a line that says what happened, and a code that a shell understands."""

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
    """For argparse. Raises ValueError, of which it makes a message, for what is not a whole number from 1 on."""
    if not text.isdigit() or int(text) < 1:
        raise ValueError(text)
    return int(text)


def add_processes(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--processes",
        type=positive,
        default=DEFAULT_PROCESSES,
        metavar="N",
        help=f"processes that train, one for each GPU (default: {PROCESSES}, or 1); the result is the same experiment",
    )


def launch(run: Callable[[], object]) -> int:
    """The exit code: 0, 1 if a stage failed, 2 for a mistake or no server, 130 and 143 as in a shell."""
    # Prefect raises the signal anew when the flow has ended. Python's default would then skip atexit, and with it the
    # end of Prefect's own server; a closed terminal would do that and leave the stage running as well.
    signal.signal(signal.SIGTERM, _leave)
    if signal.getsignal(signal.SIGHUP) == signal.SIG_DFL:  # not under nohup
        signal.signal(signal.SIGHUP, lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    if PREFECT_API_URL.value() is None:
        signal.signal(signal.SIGINT, _interrupted)
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


def _leave(*_: object) -> None:
    sys.exit(143)


def _interrupted(*_: object) -> None:
    """Ctrl-C ends Prefect's own server too, to which the flow would then report for minutes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    print("\nStopping; what has been learned so far is being saved.", file=sys.stderr, flush=True)
    kill_all()
    for child in psutil.Process().children(recursive=True):
        child.terminate()
    print("Stopped. The same command goes on from there.", file=sys.stderr, flush=True)
    os._exit(130)
