"""The command line: a thin shell over the rooms. Each command is a module of `livefire.commands`."""

from __future__ import annotations

import importlib
import os
import sys
from typing import Final

import click

from livefire import VERSION, logs, settings
from livefire.errors import INTERRUPTED, USER_ERRORS, UserError, line_of, name_line, usage_line
from livefire.pipes import open_what_is_closed, outlive_readers
from wire.config import suggestion

#: Every command and its module; loaded when it is used, so that `livefire show` does not wait for a web framework.
COMMANDS: Final[dict[str, str]] = {
    "record": "livefire.commands.record",
    "import": "livefire.commands.import_",
    "show": "livefire.commands.show",
    "export": "livefire.commands.export",
    "reconcile": "livefire.commands.reconcile",
    "cleanse": "livefire.commands.cleanse",
    "learn": "livefire.commands.learn",
    "dead": "livefire.commands.dead",
    "replay": "livefire.commands.replay",
    "drill": "livefire.commands.drill",
    "windows": "livefire.commands.windows",
    "outcomes": "livefire.commands.outcomes",
    "report": "livefire.commands.report",
    "worker": "livefire.commands.worker",
    "aggregate": "livefire.commands.aggregate",
    "topics": "livefire.commands.topics",
    "stop": "livefire.commands.stop",
    "mock": "livefire.commands.mock",
    "keys": "livefire.commands.keys",
    "kibana": "livefire.commands.kibana",
    "config": "livefire.commands.config",
    "doctor": "livefire.commands.doctor",
    "demo": "livefire.commands.demo",
}

#: Those that end when nobody reads them any more. All others do something, which must not end with its words.
_ONLY_PRINT: Final = frozenset({"show", "windows", "outcomes", "export"})

#: One line each, so that `livefire --help` loads no command.
SUMMARIES: Final[dict[str, str]] = {
    "record": "Record live HTTP traffic into a file.",
    "import": "Make a recording of captures, or of GoReplay's files, HARs, access logs.",
    "show": "What is in a recording: routes, exchanges, the account.",
    "export": "Write a recording as GoReplay's .gor, or as lines of curl.",
    "reconcile": "Compare a recording with a server's access log.",
    "cleanse": "Clean a recording and stamp it: fit to be fired.",
    "learn": "Learn routes and flows of a recording, for cleansing over a bus.",
    "dead": "What could not be cleansed: look, try again, be done with it.",
    "replay": "Fire a clean recording at a target, open loop.",
    "drill": "Raise pressure step by step under a guard, by a plan.",
    "windows": "Results of a run in tumbling or sliding windows.",
    "outcomes": "What became of every shot of a run.",
    "report": "Write the report page of a run.",
    "worker": "Stand by for drills of others, and fire for them.",
    "aggregate": "Bring outcomes from a bus into stores, as windows.",
    "topics": "Make and check the topics of a bus on Kafka.",
    "stop": "Stop a run, at once.",
    "mock": "Serve recorded answers of a third party to stress traffic.",
    "keys": "The keys that mask values and sign markers.",
    "kibana": "Data views and dashboards for Kibana.",
    "config": "Settings, and where each one came from.",
    "doctor": "What this machine can do, and what to do about the rest.",
    "demo": "The whole chain on a small shop, in about a minute.",
}


class Commands(click.Group):
    """Loads a command when it is used, and suggests the near one for a word that is none."""

    def list_commands(self, context: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(COMMANDS[name]).command
        return command

    def resolve_command(
        self, context: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            raise UserError(f"no command {args[0]!r}{suggestion(args[0], list(COMMANDS))}")
        return super().resolve_command(context, args)

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, SUMMARIES[name]) for name in COMMANDS])


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(VERSION, prog_name="livefire")
@click.option("--runs", metavar="DIR", help="Folder of the runs (default: runs).")
@click.option("--keys", metavar="FILE", help="The key file.")
@click.option("--bus", metavar="ADDRESS", help="kafka://host:port/prefix, or a folder: for what many machines share.")
@click.option("--log-level", metavar="LEVEL", help="debug, info, warning (default) or error.")
@click.option("--log-format", metavar="FORMAT", help="text (default) or json.")
@click.pass_context
def cli(
    context: click.Context,
    runs: str | None,
    keys: str | None,
    bus: str | None,
    log_level: str | None,
    log_format: str | None,
) -> None:
    """Record production HTTP traffic, clean it, and fire it back, amplified, without touching production data.

    \b
    livefire record --port 8080 --for 10m --to monday.lf
    livefire cleanse monday.lf --to clean.lf
    livefire replay clean.lf --target http://staging:8080 --copies 3 --skip-unsafe
    livefire drill plan.yaml
    """
    options = {"runs": runs, "keys": keys, "bus": bus, "log_level": log_level, "log_format": log_format}
    if context.invoked_subcommand not in _ONLY_PRINT:
        outlive_readers()
    resolved = settings.resolve(os.environ, options)
    context.obj = resolved
    logs.configure(resolved.settings.log_level, resolved.settings.log_format)


def main() -> None:
    """Run the command line and end the process with its exit code."""
    open_what_is_closed()
    try:
        code = cli.main(prog_name="livefire", standalone_mode=False)
    except (click.exceptions.Abort, KeyboardInterrupt):
        click.echo("livefire: stopped", err=True)
        code = INTERRUPTED
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message())
        code = 0
    except click.UsageError as error:
        click.echo(usage_line(error), err=True)
        code = 2
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except USER_ERRORS as error:
        click.echo(f"livefire: {error}", err=True)
        code = 2
    except (BrokenPipeError, SystemExit):  # `livefire show ... | head`: click ends with SystemExit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.__stdout__.fileno() if sys.__stdout__ else 1)
        code = 0
    except (OSError, UnicodeEncodeError) as error:
        if (told := line_of(error) if isinstance(error, OSError) else name_line(error)) is None:
            raise
        click.echo(f"livefire: {told}", err=True)
        code = 2
    sys.exit(code if isinstance(code, int) else 0)
