"""What the commands share: how arguments are called, how refusals are told, how help ends.

Owns these words. Must not know any command.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer

from cluster.ending import INTERRUPTED_EXIT_CODE
from cluster.run_folder import RunFolderError, RunUnreachable
from conf.checks import check
from conf.loading import ConfigError, load_config, shipped_names
from conf.schema import Config
from tasks.errors import DataError

USAGE_EXIT_CODE = 2

ConfigArgument = Annotated[
    str,
    typer.Argument(metavar="CONFIG", help=f"A YAML file, or the name of a shipped one ({', '.join(shipped_names())}).", show_default=False),
]
OverridesArgument = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[KEY=VALUE]...",
        help="Settings that win over the file's. 'rethinker config CONFIG' prints all keys with their values.",
        show_default=False,
    ),
]

RunArgument = Annotated[str, typer.Argument(metavar="RUN", help="A run folder; with --address also a run's name.", show_default=False)]
AddressOption = Annotated[
    str | None,
    typer.Option(
        help="Of the run's cluster, or of its dashboard (http://HEAD:8265); without it, what the run folder says, else RAY_ADDRESS.",
        show_default=False,
    ),
]


def example(*lines: str) -> str:
    """Write the end of a help text; the backspace keeps the lines as they are.

    Args:
        lines: commands as a user types them.

    Returns:
        The text.
    """
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines)


@contextmanager
def refusals() -> Iterator[None]:
    """Turn what a user can put right into one sentence and exit code 2, an interruption into 130; everything else keeps its traceback."""
    try:
        yield
    except (ConfigError, DataError, RunFolderError, RunUnreachable) as error:
        typer.echo(f"rethinker: {error}", err=True)
        raise typer.Exit(USAGE_EXIT_CODE) from error
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED_EXIT_CODE) from None


def checked(config: str, overrides: list[str] | None) -> Config:
    """Read settings that a run could start with.

    Args:
        config: a file or a shipped name.
        overrides: ``key=value`` words.

    Returns:
        Settings that passed every check that needs no cluster.

    Raises:
        ConfigError: with the first broken rule.
    """
    loaded = load_config(config, overrides or [])
    check(loaded)
    return loaded
