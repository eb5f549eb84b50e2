"""The command line: `tilewright COMMAND`. Each command lives in `commands/<name>.py`.

In: arguments. Out: exit code 0, 1 for a problem with the model or machine (one clear line on stderr),
2 for wrong usage. Invariant: no traceback for anything that is not a bug in tilewright.
"""

from __future__ import annotations

import importlib
import os
import pkgutil
import sys
from collections.abc import Sequence
from importlib import metadata
from typing import Annotated

import typer

from tilewright import commands
from tilewright.commands._common import console, errors_console, escape
from tilewright.errors import TilewrightError

app = typer.Typer(
    help="Compile trained models ahead of time for edge devices.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

for _info in sorted(pkgutil.iter_modules(commands.__path__), key=lambda m: m.name):
    if not _info.name.startswith("_"):
        _module = importlib.import_module(f"tilewright.commands.{_info.name}")
        app.command(_module.NAME)(_module.command)


def _version(wanted: bool) -> None:
    if wanted:
        console.print(f"tilewright {metadata.version('tilewright')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_version, help="print the version")
    ] = False,
) -> None:
    """Options before the command (all of them act at once)."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of the `tilewright` command; leaves through `SystemExit`."""
    try:
        app(args=None if arguments is None else list(arguments), prog_name="tilewright")
    except TilewrightError as err:
        _fail(str(err))
    except BrokenPipeError:  # the reader of our output went away: nobody is left to tell
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as err:
        where = f" {err.filename}" if err.filename is not None else ""
        _fail(f"cannot use{where or ' a file'}: {err.strerror or err}")


def _fail(message: str) -> None:
    errors_console.print(f"[red]error:[/red] {escape(message)}", soft_wrap=True, highlight=False)
    sys.exit(1)


if __name__ == "__main__":
    main()
