"""The verb bench."""

import typer

from harness.terminal import become


def bench(context: typer.Context) -> None:
    """Measure kernels, loss, transport or the training step beside peers."""
    become("bench", *context.args)
