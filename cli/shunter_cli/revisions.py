"""What one revision of a deployment changed, in one line."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from shunter_cli.output import compact
from shunter_work_pools.contracts.capacity import amount_shown

if TYPE_CHECKING:
    from shunter_work_pools.contracts.deployments import DeploymentSpec

#: Characters that a value may take in the line.
_SHOWN = 24


def changes(before: DeploymentSpec, after: DeploymentSpec) -> str:
    """``retries.count 0 → 2, tags +gpu``; ``nothing`` if they are the same."""
    parts = _differences("", _plain(before), _plain(after))
    return ", ".join(parts) or "nothing"


def _plain(spec: DeploymentSpec) -> dict[str, Any]:
    """The spec with its schedules by name."""
    data = spec.model_dump(mode="json")
    data["need"] = {name: amount_shown(name, amount) for name, amount in spec.need.items()}
    data["schedule"] = {one.pop("name"): one for one in data.pop("schedules")}
    return data


def _differences(path: str, before: Any, after: Any) -> Iterator[str]:
    if before == after:
        return
    if isinstance(before, dict) and isinstance(after, dict) and before.get("kind") == after.get("kind"):
        for key in [*before, *(key for key in after if key not in before)]:
            # What a schedule says is said by its name: not schedule.nightly.when.cron.
            below = path if key == "when" else f"{path} {key}" if path == "schedule" else f"{path}.{key}"
            yield from _differences(below.lstrip("."), before.get(key), after.get(key))
    elif isinstance(before, list) and isinstance(after, list) and path in ("tags", "require", "limits"):
        yield path + "".join(
            [f" -{one}" for one in before if one not in after]
            + [f" +{one}" for one in after if one not in before]
        )
    elif before is None and path.startswith("schedule "):
        yield f"{path} added"
    elif after is None and path.startswith("schedule ") and isinstance(before, dict):
        yield f"{path} removed"
    elif len(_text(before)) <= _SHOWN and len(_text(after)) <= _SHOWN:
        yield f"{path} {_text(before)} → {_text(after)}"
    else:
        yield f"{path} changed"


def _text(value: Any) -> str:
    return "none" if value is None else value if isinstance(value, str) else compact(value)
