"""``shunter pool template``: the variables that make the containers and Jobs of a pool's runs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shunter_cli import naming, output, parameters
from shunter_cli.completing import deployments, pools
from shunter_cli.connection import connect
from shunter_cli.output import Output, OutputOption
from shunter_work_pools.contracts.errors import InvalidInput

if TYPE_CHECKING:
    from shunter_work_pools.client import Client
    from shunter_work_pools.contracts.agents import Assignment
    from shunter_work_pools.contracts.deployments import DeploymentSpec
    from shunter_work_pools.contracts.pools import Pool

group = typer.Typer(
    no_args_is_help=True, help="The template of a pool: what the containers or Jobs of its runs are like."
)

NameArgument = Annotated[str, typer.Argument(help="The pool's name.", metavar="POOL", autocompletion=pools)]
FileOption = Annotated[
    str | None,
    typer.Option("--file", "-f", help="Variables as a JSON object in a file, - for stdin.", metavar="FILE"),
]
_AGENT, _FOLDER = "AGENT", "/AGENTS-HOME/agents/AGENT/attempts"


def given(
    words: Sequence[str], pool_type: str | None, option: str, file: str | None = None
) -> dict[str, Any]:
    """Variables of ``key=value`` words, typed by what the pool's launcher takes, over those of a file.

    Args:
        pool_type: None: the pool is not known yet.

    Raises:
        InvalidInput: a word without ``=``, a key that is given twice, a file that holds no JSON object.
    """
    from shunter_work_pools.contracts.pool_templates import TEMPLATES, any_schema

    kind = TEMPLATES.get(pool_type or "")
    schema = kind.schema() if kind else any_schema() if pool_type is None else None
    return parameters.parse(words, schema, file, option=option)


@group.command("show")
def show(
    name: NameArgument,
    schema: Annotated[
        bool, typer.Option("--schema", help="What each variable may be, as a JSON schema.")
    ] = False,
    output_as: OutputOption = Output.TABLE,
) -> None:
    """Show the variables of a pool's template."""
    with connect() as client:
        pool = _pool(client, name)
    if schema:
        from shunter_work_pools.contracts.pool_templates import TEMPLATES

        output.show_data(
            TEMPLATES[pool.type].schema(), output_as if output_as is not Output.TABLE else Output.JSON
        )
    elif output_as is not Output.TABLE:
        output.show_data(pool.template, output_as)
    else:
        output.facts([(key, _shown(key, value)) for key, value in sorted(pool.template.items())])


@group.command("set")
def set_(
    name: NameArgument,
    variables: Annotated[
        list[str] | None, typer.Argument(help="Variables to set.", metavar="[KEY=VALUE]...")
    ] = None,
    file: FileOption = None,
    unset: Annotated[
        list[str] | None, typer.Option(help="Set this one no more. Repeatable.", metavar="KEY")
    ] = None,
    output_as: OutputOption = Output.TABLE,
) -> None:
    """Change variables of a pool's template; the others stay. Runs that start from now on have them.

    \b
      shunter pool template set boxes image=python:3.12 memory=2GiB
      shunter pool template set boxes 'mounts=[{"type":"bind","source":"/data","target":"/data","read_only":true}]'
      shunter pool template set cluster namespace=runs spot=preferred 'secret_env={"KEY":"..."}'
    """
    from shunter_work_pools.contracts.pools import PoolPatch

    if not variables and not unset and file is None:
        raise InvalidInput("there is nothing to change", "Give KEY=VALUE, --file or --unset KEY.")
    with connect() as client:
        pool = _pool(client, name)
        template = pool.template | given(variables or [], pool.type, "", file)
        for key in unset or []:
            if key not in template:
                raise InvalidInput(
                    f"--unset {key}: it is not set", "`shunter pool template show` lists them."
                )
            del template[key]
        pool = client.update_pool(pool.name, PoolPatch(template=template))
    if output_as is not Output.TABLE:
        output.show_data(pool.template, output_as)
    else:
        output.say(f"template of pool {pool.name} updated")


@group.command("preview")
def preview(
    name: NameArgument,
    deployment: Annotated[
        str | None,
        typer.Argument(
            help="The deployment whose run it would be.", metavar="[DEPLOYMENT]", autocompletion=deployments
        ),
    ] = None,
    output_as: OutputOption = Output.JSON,
) -> None:
    """Print the container or Job that a run would be, as the engine is asked for it. Nothing is started.

    Secret values are not shown.
    """
    with connect() as client:
        pool = _pool(client, name)
        spec = None
        if deployment is not None:
            spec = naming.found(client, naming.DEPLOYMENT, deployment, client.get_deployment).spec
    output.show_data(
        _manifest(pool, deployment, spec), output_as if output_as is not Output.TABLE else Output.JSON
    )


def _manifest(pool: Pool, deployment: str | None, spec: DeploymentSpec | None) -> dict[str, Any]:
    from datetime import UTC, datetime
    from uuid import UUID

    from shunter_infrastructure.launcher import LaunchFailed
    from shunter_work_pools.contracts.agents import Assignment
    from shunter_work_pools.contracts.deployments import Work

    run = UUID(int=0)
    assignment = Assignment(
        run=run,
        attempt=1,
        epoch=1,
        session=run,
        deployment=deployment or "DEPLOYMENT",
        revision=1,
        pool=pool.name,
        queue=(spec.queue if spec else None) or "default",
        tags=spec.tags if spec else [],
        parameters=spec.parameters if spec else {},
        scheduled_at=datetime.fromtimestamp(0, UTC),
        work=spec.work if spec else Work(command=["COMMAND"]),
        need=spec.need if spec else {},
        template=pool.template | (spec.variables if spec else {}),
    )
    try:
        return _PREVIEWS[pool.type](assignment)
    except LaunchFailed as exc:
        raise InvalidInput(exc.detail, exc.remedy) from exc


def _container(assignment: Assignment) -> dict[str, Any]:
    from shunter_infrastructure.docker import container

    template = container.read_template(assignment)
    own = _OfTheAgent(assignment.work.pass_env)
    name = container.name_of(assignment.run, 1)
    folder = Path(_FOLDER, f"{assignment.run}.1")
    secrets = dict.fromkeys(assignment.work.env.keys() - assignment.work.plain_env.keys(), "(secret)")
    return {
        "name": name,
        **container.configuration(assignment, template, folder, _AGENT, own, secrets=secrets),
    }


def _job(assignment: Assignment) -> dict[str, Any]:
    from shunter_infrastructure.kubernetes import manifest

    template = manifest.read_template(assignment)
    return manifest.job(assignment, template, _AGENT, _OfTheAgent(assignment.work.pass_env))


_PREVIEWS = {"docker": _container, "kubernetes": _job}


class _OfTheAgent(dict[str, str]):
    """The environment of an agent that is not here."""

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__({name: f"(the agent's {name})" for name in names})


def _pool(client: Client, name: str) -> Pool:
    pool = naming.found(client, naming.POOL, name, client.get_pool)
    if pool.type not in _PREVIEWS:
        raise InvalidInput(
            f"pool {pool.name} is of type {pool.type}, and has no template",
            "Make another one: shunter pool create NAME --type docker --template image=IMAGE (or kubernetes).",
        )
    return pool


def _shown(key: str, value: Any) -> str:
    from shunter_work_pools.contracts.secret_variables import SECRETS

    if key == SECRETS:
        return f"{', '.join(value)} (values are not shown)"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
