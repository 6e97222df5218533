"""Which pools have a template, and of what variables it is made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from shunter_work_pools.contracts import docker_template, kubernetes_template


@dataclass(frozen=True)
class TemplateKind:
    """The template of pools of one type.

    Attributes:
        model: its variables.
        reserved: variables that people look for -> why there are none.
    """

    model: type[BaseModel]
    reserved: Mapping[str, str]

    def schema(self) -> dict[str, Any]:
        """The JSON schema of the variables."""
        return self.model.model_json_schema()


#: Pool type -> its template; other pools have none.
TEMPLATES = {
    "docker": TemplateKind(docker_template.DockerTemplate, docker_template.RESERVED),
    "kubernetes": TemplateKind(kubernetes_template.KubernetesTemplate, kubernetes_template.RESERVED),
}


def any_schema() -> dict[str, Any]:
    """The JSON schema of variables for a pool that is not known yet."""
    schemas = [kind.schema() for kind in TEMPLATES.values()]
    return {
        part: {name: one for schema in reversed(schemas) for name, one in schema[part].items()}
        for part in ("properties", "$defs")
    }
