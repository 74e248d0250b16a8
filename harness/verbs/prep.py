"""Verbs of preparation: prep data, prep eval."""

from typing import Any

import typer

from harness.terminal import become

PASSED_THROUGH: dict[str, Any] = {
    "allow_extra_args": True,
    "ignore_unknown_options": True,
    "help_option_names": [],
}

prep = typer.Typer(help="Prepare data and eval bundles without a run.", rich_markup_mode=None)


@prep.command("data", context_settings=PASSED_THROUGH)
def prep_data(context: typer.Context) -> None:
    """The speedrun's data into the data root; with --source, any documents into any folder."""
    has_source = any(argument.startswith("--source") for argument in context.args)
    become("nmoe.data.cli", "prep" if has_source else "prep-speedrun", *context.args)


@prep.command("mixture", context_settings=PASSED_THROUGH)
def prep_mixture(context: typer.Context) -> None:
    """Every source of a mixture file; options as in `n prep mixture --help`."""
    become("nmoe.data.cli", "prep-mixture", *context.args)


@prep.command("eval", context_settings=PASSED_THROUGH)
def prep_eval(context: typer.Context) -> None:
    """The official eval bundle into the data root; with --output DIR, the small one of `pocket`."""
    if any(argument.startswith("--output") for argument in context.args):
        become("nmoe.data.cli", "prep-bundle", *context.args)
    become("harness.prep", *context.args)
