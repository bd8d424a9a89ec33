"""Options that every command has: a folder of plugins, and what is left out of them."""

from __future__ import annotations

import os
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from dllm_sampling.errors import ConfigurationError


class Group(TyperGroup):
    """Commands, each with the shared options among its own."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        for command in self.commands.values():
            if not isinstance(command, TyperGroup):
                command.params += _options()


def _options() -> list[Any]:
    # The signature of a command is how typer is told of options.
    made = typer.Typer(add_completion=False)
    made.command()(_shared)
    return list(typer.main.get_command(made).params)


def _use_folder(folder: str | None) -> None:
    if folder is None:
        return
    from dllm_sampling.plugins.discovery import FOLDER  # imports torch, which `--help` does without

    if not folder.strip():
        raise ConfigurationError(f"--plugins-dir {folder!r} names no folder; the working one is `.`.")
    os.environ[FOLDER] = folder


def _leave_out(names: list[str] | None) -> None:
    if not names:
        return
    from dllm_sampling.plugins.registry import SELECT  # as above

    for name in names:
        if not name.strip() or "," in name or name.startswith("-"):
            raise ConfigurationError(
                f"--disable {name!r}: give the name of one plugin, policy, family or task, or plugin:name; "
                "for several, give the option several times."
            )
    before = [os.environ[SELECT]] if os.environ.get(SELECT) else []
    os.environ[SELECT] = ",".join([*before, *(f"-{name}" for name in names)])


def _shared(
    plugins_dir: Annotated[
        str | None,
        typer.Option(
            "--plugins-dir",
            callback=_use_folder,
            expose_value=False,
            help="A folder of one-file plugins (DLLM_SAMPLING_PLUGINS_DIR).",
        ),
    ] = None,
    disable: Annotated[
        list[str] | None,
        typer.Option(
            "--disable",
            callback=_leave_out,
            expose_value=False,
            metavar="NAME",
            help="Leave out a plugin, or what plugins offer under a name (-NAME in DLLM_SAMPLING_PLUGINS).",
        ),
    ] = None,
) -> None:
    """What is done with the options is done by their callbacks."""
