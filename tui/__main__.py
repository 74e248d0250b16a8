"""`python -m tui`: the start screen, or the run that is going on; attach and start by name.

Prints one line after leaving: how to come back.
"""

import argparse
import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from harness.alive import is_alive, newest_alive
from harness.errors import HarnessError, UsageError
from nmoe.paths import DataRoot, RunFolder, data_root
from tui.app import NmoeApp
from tui.screens.request import Request

DTYPES = ("bf16", "fp8", "nvfp4", "fp32")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the app until it is left; the exit code, 2 without a terminal or such a run."""
    args = _parser().parse_args(argv)
    try:
        if args.web:
            _end_with_parent()
        else:
            _need_terminal(args)
        app = _app(args, data_root())
    except HarnessError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    app.run()
    if args.verb != "replay" and not args.web:
        _say_how_to_come_back(app.run_folder)
    return app.return_code or 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tui", description=__doc__)
    parser.set_defaults(verb=None, readonly=False, web=False)
    parser.add_argument(
        "--ascii", action="store_true", help="draw in ASCII; so does a terminal without UTF-8"
    )
    verbs = parser.add_subparsers(dest="verb")
    attach = verbs.add_parser("attach", help="watch a run")
    attach.add_argument("run", help="run id, or the beginning of it")
    attach.add_argument("--readonly", action="store_true", help="look only")
    attach.add_argument("--web", action="store_true", help="as a part of `n viz`")
    again = verbs.add_parser("replay", help="watch a recorded run as it went")
    again.add_argument("run", help="run id, the beginning of it, or the path of a run folder")
    again.add_argument("--speed", type=float, default=20.0, help="times its own pace")
    start = verbs.add_parser("start", help="the start screen with a plan")
    start.add_argument("preset", nargs="?", help="a preset or a TOML file")
    start.add_argument("--dtype", choices=DTYPES)
    start.add_argument("--gpus", type=int)
    start.add_argument("--steps", type=int)
    start.add_argument("--seed", type=int)
    start.add_argument("--data", type=Path)
    start.add_argument("--set", action="append", default=[], dest="overrides")
    start.add_argument("--fake-hardware", type=Path)
    return parser


def _app(args: argparse.Namespace, root: DataRoot) -> NmoeApp:
    """The app that shows what was asked for; RunError when there is no such run."""
    is_ascii = (
        args.ascii or not args.web and not (sys.stdout.encoding or "").lower().startswith("utf")
    )
    match args.verb:
        case "replay":
            from harness import replay
            from tui.replay import ReplayApp

            run = replay.find(root, args.run)
            return ReplayApp(root, run=run, speed=args.speed, is_ascii=is_ascii)
        case "attach":
            from harness import runs

            run = runs.find(root, args.run)
        case "start":
            run = None
        case _:
            run = newest_alive(root)
    return NmoeApp(
        root, run=run, request=_request(args), is_readonly=args.readonly, is_ascii=is_ascii
    )


def _request(args: argparse.Namespace) -> Request:
    if args.verb != "start":
        return Request()
    return Request(
        preset=args.preset,
        dtype=args.dtype,
        gpus=args.gpus,
        steps=args.steps,
        seed=args.seed,
        data=args.data,
        overrides=tuple(args.overrides),
        fake_hardware=args.fake_hardware,
    )


def _end_with_parent() -> None:
    """Leave when the server is gone that shows this app in a browser."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="parent", daemon=True).start()


def _need_terminal(args: argparse.Namespace) -> None:
    """Without a terminal the screen would hang; name the command that does not need one."""
    if sys.stdin.isatty() and sys.stdout.isatty():
        return
    command = "n speedrun --headless"
    if args.verb in ("attach", "replay"):
        command = f"n {args.verb} {args.run} --headless"
    if args.verb == "start" and args.preset:
        command = f"n speedrun {args.preset} --headless"
    raise UsageError("the screen needs a terminal on stdin and stdout", f"Run: {command}")


def _say_how_to_come_back(run: RunFolder | None) -> None:
    """One line on the terminal that was left; none when it is gone."""
    if run is None:
        return
    state = "the run goes on, come back" if is_alive(run) else "the run is over, look again"
    try:
        sys.stdout.write(f"{state} with: n attach {run.run_id}\n")
        sys.stdout.flush()
    except OSError:
        return


if __name__ == "__main__":
    sys.exit(main())
