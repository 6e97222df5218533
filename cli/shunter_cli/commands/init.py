"""``shunter init``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from shunter_cli import output
from shunter_work_pools.contracts.errors import InvalidInput

#: The schema beside a file, for editors.
SCHEMA = "shunter.schema.json"

_YAML = """\
{editor}
# The deployments of this folder. What would change:  shunter deploy --dry-run
# Deploy them:                                        shunter deploy
# Every key is described in docs/deployment-files.md.

# What all deployments below share; each may say otherwise.
defaults:
  pool: default                # where they run: `shunter pool list`
  # tags: [nightly]            # labels
  # retries: {{count: 3, delay: 1m}}
  # env:
  #   DATABASE: ${{DATABASE:-sqlite:///data.db}}   # from the environment of `shunter deploy`

deployments:
  - name: hello
    description: Says hello.
    command: sh -c 'echo hello'           # or a list: [sh, -c, "echo hello"]
    # timeout: 10m                        # longest time of an attempt
    # max_active: 1                       # runs at once; when_full says what becomes of others
    schedules:
      - cron: "0 6 * * 1-5"               # at 06:00 on weekdays
        timezone: Europe/Berlin
        paused: true                      # until: shunter schedule resume hello
      # - name: often
      #   interval: 15m
      #   jitter: 30s
      # - name: last-friday
      #   rrule: FREQ=MONTHLY;BYDAY=-1FR;BYHOUR=18;BYMINUTE=0;BYSECOND=0
      #   catch_up: latest                # what was missed: all, latest or none

  # A Python function with its parameters:
  # - name: pipeline
  #   entrypoint: pipeline.py:main
  #   parameters:
  #     year: 2013
"""

_TOML = """\
{editor}
# The deployments of this folder. What would change:  shunter deploy --dry-run
# Deploy them:                                        shunter deploy
# Every key is described in docs/deployment-files.md.

# What all deployments below share; each may say otherwise.
[defaults]
pool = "default"               # where they run: `shunter pool list`
# tags = ["nightly"]           # labels
# retries = {{ count = 3, delay = "1m" }}
# env = {{ DATABASE = "${{DATABASE:-sqlite:///data.db}}" }}   # from the environment of `shunter deploy`

[[deployments]]
name = "hello"
description = "Says hello."
command = "sh -c 'echo hello'"            # or a list: ["sh", "-c", "echo hello"]
# timeout = "10m"                         # longest time of an attempt
# max_active = 1                          # runs at once; when_full says what becomes of others

[[deployments.schedules]]
cron = "0 6 * * 1-5"                      # at 06:00 on weekdays
timezone = "Europe/Berlin"
paused = true                             # until: shunter schedule resume hello

# [[deployments.schedules]]
# name = "often"
# interval = "15m"
# jitter = "30s"

# [[deployments.schedules]]
# name = "last-friday"
# rrule = "FREQ=MONTHLY;BYDAY=-1FR;BYHOUR=18;BYMINUTE=0;BYSECOND=0"
# catch_up = "latest"                     # what was missed: all, latest or none

# A Python function with its parameters:
# [[deployments]]
# name = "pipeline"
# entrypoint = "pipeline.py:main"
# parameters = {{ year = 2013 }}
"""
_EDITOR_HINT = f"# For completion in editors:  shunter init --schema > {SCHEMA}  and this first line:\n# "


def attach(app: typer.Typer) -> None:
    """Add the command."""
    app.command("init")(init)


def init(
    toml: Annotated[bool, typer.Option("--toml", help="Write shunter.toml instead.")] = False,
    schema: Annotated[
        bool, typer.Option("--schema", help="Print the JSON schema of deployment files, for editors.")
    ] = False,
) -> None:
    """Write a deployment file to begin with into this folder.

    It can be deployed as it stands. Nothing is ever overwritten.

    \b
      shunter init --schema > shunter.schema.json
      shunter init
      shunter deploy --dry-run
    """
    if schema:
        from shunter_cli.deployment_files.schema import schema_text

        sys.stdout.write(schema_text())
        return
    from shunter_cli.deployment_files import finding

    _refuse_second(Path.cwd(), (finding.YAML, finding.TOML))
    path = Path.cwd() / (finding.TOML if toml else finding.YAML)
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(start(toml=toml, with_schema=(path.parent / SCHEMA).exists()))
    except OSError as exc:
        raise InvalidInput(f"{path} cannot be written: {exc.strerror}", "Choose another folder.") from exc
    output.say(f"{path.name} written; `shunter deploy --dry-run` shows what it would deploy")


def start(*, toml: bool, with_schema: bool) -> str:
    """The text to begin with; ``with_schema``: editors find the schema beside it."""
    line = f"#:schema ./{SCHEMA}" if toml else f"# yaml-language-server: $schema=./{SCHEMA}"
    return (_TOML if toml else _YAML).format(editor=line if with_schema else _EDITOR_HINT + line)


def _refuse_second(folder: Path, names: tuple[str, ...]) -> None:
    for name in names:
        if (folder / name).exists():
            raise InvalidInput(
                f"there is a {name} in {folder} already",
                "Nothing was written; remove it first to begin anew.",
            )
