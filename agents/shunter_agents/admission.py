"""Whether an attempt is allowed by the agent's policy: asked before anything is fetched or started for it.

What only the launcher finds out (which file a program is, where a working folder leads) it asks by
:class:`~shunter_infrastructure.launcher.Rules`, and uses the very path that was allowed.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from pydantic import ValidationError

from shunter_agents import patterns
from shunter_agents.policy import Policy, read
from shunter_infrastructure.launcher import LaunchFailed, Rules
from shunter_infrastructure.process import users
from shunter_work_pools.contracts.agents import Assignment
from shunter_work_pools.contracts.capacity import CPU
from shunter_work_pools.contracts.code_sources import ArchiveSource, GitSource
from shunter_work_pools.contracts.deployments import Work
from shunter_work_pools.contracts.durations import exactly
from shunter_work_pools.contracts.errors import InvalidInput
from shunter_work_pools.contracts.sizes import size
from shunter_work_pools.contracts.states import Cause

if TYPE_CHECKING:
    from shunter_work_pools.contracts.kubernetes_template import KubernetesTemplate

#: Variables by which a process is made to load or run something else than what it was allowed to be. Where programs
#: or entrypoints are restricted and [environment] says nothing, they may not be set.
HAZARDS = (
    "LD_*",
    "DYLD_*",
    "GCONV_PATH",
    "PATH",
    "IFS",
    "ENV",
    "BASH_ENV",
    "SHELLOPTS",
    "BASHOPTS",
    "PS4",
    "PYTHON*",
    "PERL*",
    "RUBY*",
    "NODE_OPTIONS",
    "NODE_PATH",
    "*JAVA_OPTIONS",
    "JAVA_TOOL_OPTIONS",
    "CLASSPATH",
    "GIT_*",
    "SSH_ASKPASS",
    "EDITOR",
    "VISUAL",
    "*PAGER",
    "LESSOPEN",
    # Where programs look for files that say what they load: git, pip, uv, Python's user site.
    "HOME",
    "XDG_*",
    "ZDOTDIR",
    "OPENSSL_*",
    "LUA_*",
    "UV_*",
    "PIP_*",
    "NPM_CONFIG_*",
    "DOTNET_*",
)
#: Of a list so many are shown.
_SHOWN = 6


class PolicyFile:
    """The policy of a file that may change while the agent lives.

    What is broken does not count: the rules before it stay in force, and ``trouble`` says what is wrong.

    Args:
        path: of the file.
        must: it has to be there.

    Raises:
        InvalidInput: it is not good to begin with.

    Attributes:
        policy: in force.
        secrets: of its section [secrets].
        trouble: why the file as it is now is not in force; None: it is.
    """

    def __init__(self, path: Path, *, must: bool = True) -> None:
        self.path = path
        self.trouble: str | None = None
        self._seen = _identity(path)
        self.policy = read(path, must=must)
        self.secrets = dict(self.policy.secrets)

    def refresh(self) -> bool:
        """Read it again if it has changed; whether it had."""
        seen = _identity(self.path)
        if seen == self._seen:
            return False
        try:
            # One that was there has to stay: its rules do not end because somebody moved it away.
            self.policy = read(self.path)
            self.trouble = None
            self.secrets.clear()
            self.secrets.update(self.policy.secrets)
        except InvalidInput as exc:
            self.trouble = f"its policy has changed and is not in force, the one before is: {exc.detail}"
        self._seen = seen
        return True


def _identity(path: Path) -> tuple[int, ...] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


class Admission:
    """Applies a policy.

    Args:
        policy: what is allowed.
        path: of its file, for what is told.
    """

    def __init__(self, policy: Policy, path: Path) -> None:
        self._policy = policy
        self._path = path

    def admit(self, assignment: Assignment, launcher: str) -> None:
        """Refuse what is not allowed, as far as it can be told before its code is there.

        Args:
            launcher: name of the launcher that is to start it.

        Raises:
            LaunchFailed: it is not allowed; the text names the rule.
        """
        self._one_of("pools of type", launcher, "launchers", "allow", self._policy.launchers.allow, apart="")
        self._code(assignment)
        self._variables(assignment, launcher)
        if launcher == "docker":
            self._docker(assignment)
        elif launcher == "kubernetes":
            self._kubernetes(assignment)
        else:
            self._process(assignment)
            self._resources(assignment, None, 0.0)

    def rules(self) -> Rules:
        """What the launcher of processes asks."""
        limits, programs = self._policy.limits, self._policy.programs.allow
        chosen = {name: getattr(limits, name) for name in ("core", "nofile", "nproc", "fsize")}
        folder = self._policy.users.folder
        return Rules(
            program=self.program,
            interpreter=(lambda path: path)
            if programs is not None and "python" in programs
            else self.program,
            folder=self.folder,
            limits={name: value for name, value in chosen.items() if value is not None},
            umask=limits.umask,
            new_privileges=limits.new_privileges,
            runs=None if folder is None else Path(folder),
            builds=not self._chooses_programs,
        )

    def program(self, path: str) -> str:
        """The file to execute for a program; see ``Rules.program``."""
        allowed = self._policy.programs.allow
        if allowed is None:
            return path
        if not patterns.program_allowed(path, [one for one in allowed if one != "python"]):
            real = os.path.realpath(path)
            leads = f" (which is {real})" if real != path else ""
            self._refuse(f"the program {path}{leads}", "programs", "allow", allowed)
        return os.path.realpath(path)

    def folder(self, path: str) -> str:
        """The folder to use; see ``Rules.folder``."""
        allowed = self._policy.folders.allow
        if allowed is None:
            return path
        real = os.path.realpath(path)
        if not patterns.folder_allowed(real, allowed):
            leads = f" (which is {real})" if real != path else ""
            self._refuse(f"the folder {path}{leads}", "folders", "allow", allowed)
        return real

    # -- parts of it

    def _code(self, assignment: Assignment) -> None:
        source = assignment.work.source
        url = source.git if isinstance(source, GitSource) else None
        url = source.archive if isinstance(source, ArchiveSource) else url
        allowed = self._policy.repositories.allow
        if url is not None and allowed is not None and not patterns.repository_allowed(url, allowed):
            # Without what may be a password in it.
            self._refuse(
                f"code from {patterns.repository(url) or 'such an address'}", "repositories", "allow", allowed
            )
        entrypoints, entrypoint = self._policy.entrypoints.allow, assignment.work.entrypoint
        if entrypoints is not None and entrypoint is not None:
            found = patterns.entrypoint(entrypoint)
            self._one_of("the entrypoint", found, "entrypoints", "allow", entrypoints, apart="/:")

    def _variables(self, assignment: Assignment, launcher: str) -> None:
        rules, template = self._policy.environment, assignment.template
        names = set(assignment.work.env)
        for variable in ("env", "secret_env", "env_refs"):
            inner = template.get(variable)
            names |= set(inner) if isinstance(inner, dict) else set()
        deny: Iterable[str] | None = rules.deny
        of_processes = launcher not in ("docker", "kubernetes")
        by_default = deny is None and rules.allow is None and self._chooses_programs and of_processes
        if by_default:
            deny = HAZARDS
        for name in sorted(names):
            self._one_of("the variable", name, "environment", "allow", rules.allow, apart="")
            if deny is not None and patterns.matches(name, deny, apart=""):
                why = "deny, by default beside [programs] and [entrypoints]" if by_default else "deny"
                self._refuse(
                    f"the variable {name}",
                    "environment",
                    why,
                    [one for one in deny if patterns.matches(name, [one], apart="")],
                )
        if template.get("env_from") and (rules.allow is not None or rules.deny is not None):
            self._refuse(
                "env_from, which brings variables of any name,",
                "environment",
                "allow",
                rules.allow or rules.deny or [],
            )
        for name in assignment.work.pass_env:
            self._one_of("passing the variable", name, "environment", "pass", rules.pass_, apart="")

    def _process(self, assignment: Assignment) -> None:
        work, allowed = assignment.work, self._policy.users.allow
        if allowed is not None:
            uid = os.geteuid() if work.run_as is None else users.find(work.run_as).uid
            if uid not in _ids(allowed):
                who = (
                    f"user {work.run_as}"
                    if work.run_as is not None
                    else "the agent's own user (the run has no run_as)"
                )
                self._refuse(f"running as {who}", "users", "allow", allowed)
        if work.local_source is not None:
            self.folder(os.path.abspath(work.local_source))
        fetched = work.source is not None and work.local_source is None
        if work.working_dir is not None and (os.path.isabs(work.working_dir) or not fetched):
            self.folder(os.path.abspath(os.path.join(work.local_source or "", work.working_dir)))
        self._environment(work)
        program = work.command[0] if work.command is not None else work.python
        if program is not None and os.path.isabs(program) and os.path.exists(program):
            self.program(program)

    def _environment(self, work: Work) -> None:
        """What building it would start and fetch."""
        wanted, repositories = work.environment, self._policy.repositories.allow
        if wanted is None:
            return
        from shunter_agents.sources.environment import is_version  # with all that building one takes

        if wanted.python is not None and not is_version(wanted.python) and self._chooses_programs:
            if not os.path.isabs(wanted.python):  # wherever uv would look for it
                self._refuse(
                    f"the interpreter {wanted.python} of an environment",
                    "programs",
                    "allow",
                    self._policy.programs.allow or [],
                )
            self.program(wanted.python)
        for line in wanted.requirements if repositories is not None else []:
            for url in re.findall(r"\S+://\S*", line):
                address = url.split("@", 1)[1] if re.match(r"[\w.-]+(\[.*\])?@\w", url) else url
                if "${" in line or not patterns.repository_allowed(_fetched(address), repositories or []):
                    self._refuse(
                        f"code from {patterns.repository(_fetched(address)) or 'such an address'}",
                        "repositories",
                        "allow",
                        repositories or [],
                    )

    @property
    def _chooses_programs(self) -> bool:
        """Whether there are rules of what is executed."""
        return self._policy.programs.allow is not None or self._policy.entrypoints.allow is not None

    def _resources(self, assignment: Assignment, memory: int | None, cpu: float) -> None:
        """Of what is limited it asks for no more, and has a limit.

        Args:
            memory, cpu: what the template says.
        """
        most, work = self._policy.maximum, assignment.work
        had = work.memory_limit or memory
        if most.memory_limit is not None and (had is None or had > most.memory_limit):
            asked = "no" if had is None else size(had)
            self._refuse(
                f"a run with {asked} memory_limit", "maximum", "memory_limit", [size(most.memory_limit)]
            )
        if most.timeout is not None and (work.timeout is None or work.timeout > most.timeout):
            asked = "no" if work.timeout is None else exactly(work.timeout)
            self._refuse(f"a run with {asked} timeout", "maximum", "timeout", [exactly(most.timeout)])
        needs = dict(assignment.need)
        if cpu:
            needs[CPU] = max(cpu, needs.get(CPU, 0.0))
        for name, amount in needs.items():
            if name in most.need and amount > most.need[name]:
                self._refuse(
                    f"a run that needs {name}={amount:g}", "maximum", f"need.{name}", [f"{most.need[name]:g}"]
                )

    def _docker(self, assignment: Assignment) -> None:
        from shunter_work_pools.contracts.docker_template import DockerTemplate, bytes_of

        template = _parsed(DockerTemplate, assignment)
        if template is None:
            return
        rules = self._policy.docker
        self._image(template.image)
        for mount in template.mounts:
            if mount.type == "bind":
                self._below("mounting", str(mount.source), "docker", "mounts", rules.mounts)
        for network in template.networks or ["bridge"]:
            self._one_of("the network", network, "docker", "networks", rules.networks)
        for device in template.devices:
            self._one_of(
                "the device", os.path.realpath(device.split(":")[0]), "docker", "devices", rules.devices
            )
        self._capabilities(template.cap_add, "docker", rules.cap_add)
        self._resources(
            assignment,
            bytes_of(template.memory) if template.memory is not None else None,
            template.cpu or 0.0,
        )

    def _kubernetes(self, assignment: Assignment) -> None:
        from shunter_work_pools.contracts.docker_template import bytes_of
        from shunter_work_pools.contracts.kubernetes_template import KubernetesTemplate

        template = _parsed(KubernetesTemplate, assignment)
        if template is None:
            return
        rules, images = self._policy.kubernetes, self._policy.images.allow
        restricted = images is not None or any(
            value is not None for key, value in rules.model_dump().items() if key != "patch"
        )
        may_patch = rules.patch if rules.patch is not None else not restricted
        if template.patch and not may_patch:
            self._refuse(
                "a patch, which could change whatever is restricted,", "kubernetes", "patch", ["false"]
            )
        self._image(template.image)
        for container in [*template.init_containers, *template.sidecars]:
            self._image(str(container.get("image", "")))
            self._rights(container.get("securityContext") or {}, rules.cap_add)
        self._one_of("the namespace", template.namespace, "kubernetes", "namespaces", rules.namespaces)
        account = template.service_account or "default"
        self._one_of("the service account", account, "kubernetes", "service_accounts", rules.service_accounts)
        for name in _secrets_of(template):
            self._one_of("the Secret", name, "kubernetes", "secrets", rules.secrets)
        for mount in template.mounts:
            if mount.type == "host_path":
                self._below("mounting", str(mount.source), "kubernetes", "host_paths", rules.host_paths)
            elif mount.type == "pvc":
                self._one_of("the claim", str(mount.source), "kubernetes", "claims", rules.claims)
        self._capabilities(template.cap_add, "kubernetes", rules.cap_add)
        self._resources(
            assignment,
            bytes_of(template.memory) if template.memory is not None else None,
            template.cpu or 0.0,
        )

    def _image(self, name: str) -> None:
        allowed = self._policy.images.allow
        if allowed is not None and not patterns.image_allowed(name, allowed):
            self._refuse(f"the image {name}", "images", "allow", allowed)

    def _capabilities(self, names: Iterable[str], section: str, allowed: list[str] | None) -> None:
        bare = None if allowed is None else [one.removeprefix("CAP_") for one in allowed]
        for name in names:
            self._one_of("the capability", name.removeprefix("CAP_"), section, "cap_add", bare)

    def _rights(self, context: dict[str, Any], allowed: list[str] | None) -> None:
        """Of a container beside the run's own, which a template writes as Kubernetes does."""
        self._capabilities((context.get("capabilities") or {}).get("add") or [], "kubernetes", allowed)
        if context.get("privileged") and allowed is not None:
            self._refuse("a privileged container, which has all of them,", "kubernetes", "cap_add", allowed)

    def _below(self, what: str, path: str, section: str, key: str, allowed: list[str] | None) -> None:
        if allowed is not None and not patterns.folder_allowed(path, allowed):
            self._refuse(f"{what} {path}", section, key, allowed)

    def _one_of(
        self, what: str, text: str, section: str, key: str, allowed: list[str] | None, apart: str = "/"
    ) -> None:
        if allowed is not None and not patterns.matches(text, allowed, apart):
            self._refuse(f"{what} {text}", section, key, allowed)

    def _refuse(self, what: str, section: str, key: str, rule: Iterable[Any]) -> NoReturn:
        listed = list(map(str, rule))
        shown = ", ".join(listed[:_SHOWN]) + (
            f" and {len(listed) - _SHOWN} more" if len(listed) > _SHOWN else ""
        )
        raise LaunchFailed(
            Cause.REJECTED,
            f"{what} is not allowed by the agent's own policy: {self._path}, [{section}] {key}: {shown or 'nothing'}",
            "Deploy what it allows, or to another pool. Only who runs the agent can change its policy.",
        )


def _secrets_of(template: KubernetesTemplate) -> Iterator[str]:
    """Secrets whose values the containers of a pod get."""
    for source in [*template.env_refs.values(), *template.env_from]:
        if source.secret is not None:
            yield source.secret
    for mount in template.mounts:
        if mount.type == "secret":
            yield str(mount.source)
    yield from _references([*template.init_containers, *template.sidecars])


def _references(value: Any) -> Iterator[str]:
    """Secrets that a manifest refers to, as Kubernetes writes it; whether it is a good one is for the API server."""
    if isinstance(value, list):
        for one in value:
            yield from _references(one)
    elif isinstance(value, dict):
        for key, one in value.items():
            if key in ("secretKeyRef", "secretRef") and isinstance(one, dict):
                yield str(one.get("name"))
            else:
                yield from _references(one)


def _fetched(url: str) -> str:
    """What a requirement's URL is fetched from: without git's prefix, commit, and what is to be made of it."""
    url = url.split("=", 1)[1] if url.startswith("-") and "=" in url else url
    url = url.removeprefix("git+").partition("#")[0]
    scheme, _, rest = url.partition("://")
    host, slash, path = rest.partition("/")
    return f"{scheme}://{host}{slash}{path.partition('@')[0]}"


def _ids(names: Iterable[str]) -> set[int]:
    found = set()
    for name in names:
        try:
            found.add(users.find(name).uid)
        except LaunchFailed:
            continue  # a user that the machine does not have is nobody
    return found


def _parsed(kind: Any, assignment: Assignment) -> Any:
    """The template as its launcher reads it; None: it will refuse it."""
    try:
        return kind.model_validate(assignment.template)
    except ValidationError:
        return None


def admitted(file: PolicyFile, assignment: Assignment, launcher: str) -> Rules:
    """What its launcher is to keep of an attempt that is allowed by the policy in force.

    Raises:
        LaunchFailed: it is not allowed.
    """
    admission = Admission(file.policy, file.path)
    admission.admit(assignment, launcher)
    return admission.rules()
