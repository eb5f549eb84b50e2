"""The command line: `tilewright COMMAND`. Each command lives in `commands/<name>.py`.

In: arguments. Out: exit code 0, 1 for a problem with the model or machine (one clear line on stderr),
2 for wrong usage. Invariant: no traceback for anything that is not a bug in tilewright.
"""

from __future__ import annotations

import importlib
import os
import pkgutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from typing import Annotated, Any

import typer

from tilewright import commands
from tilewright.commands._common import console, errors_console, escape
from tilewright.errors import TilewrightError


class _Commands(Mapping[str, Any]):
    """Commands by name; the file of one is imported when somebody asks for it, as imports take most of the
    time of a short command. `backend-suite` is the file `backend_suite.py`."""

    def __init__(self) -> None:
        self._modules = {
            m.name.replace("_", "-"): m.name
            for m in sorted(pkgutil.iter_modules(commands.__path__), key=lambda m: m.name)
            if not m.name.startswith("_")
        }
        self._made: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        if name not in self._made:
            module = importlib.import_module(f"tilewright.commands.{self._modules[name]}")
            single = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
            single.command(module.NAME)(module.command)
            self._made[name] = typer.main.get_command(single)
        return self._made[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._modules)

    def __len__(self) -> int:
        return len(self._modules)


class _Group(typer.core.TyperGroup):
    """The commands, each imported when it is used."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.commands: Any = _Commands()

    def list_commands(self, ctx: Any) -> list[str]:
        return list(self.commands)


app = typer.Typer(
    cls=_Group,
    help="Compile trained models ahead of time for edge devices.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


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
