"""The command line: `tilewright COMMAND`. Each command lives in `commands/<name>.py`.

In: arguments. Out: exit code 0, 1 for a problem with the model or machine (one clear line on stderr),
2 for wrong usage. Invariant: no traceback for anything that is not a bug in tilewright.
"""

from __future__ import annotations

import importlib
import pkgutil
import sys

import typer

from tilewright import commands
from tilewright.commands._common import errors_console
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


def main() -> None:
    """Entry point of the `tilewright` command."""
    try:
        app()
    except TilewrightError as err:
        errors_console.print(
            f"[red]error:[/red] {_escape(str(err))}", soft_wrap=True, highlight=False
        )
        sys.exit(1)
    except BrokenPipeError:
        sys.exit(1)


def _escape(text: str) -> str:
    return text.replace("[", r"\[")


if __name__ == "__main__":
    main()
