"""What the agent may do in a namespace, and which rights it lacks."""

from __future__ import annotations

from shunter_infrastructure.kubernetes.client import Client, Refused
from shunter_infrastructure.launcher import LauncherUnavailable

#: Group, resource and verbs that the launcher cannot do without.
NEEDED = (
    ("batch", "jobs", ("create", "get", "list", "watch", "patch", "delete")),
    ("", "pods", ("list", "watch", "patch", "delete")),
    ("", "pods/log", ("get",)),
    ("", "secrets", ("create",)),
    ("", "configmaps", ("create",)),
    ("", "events", ("list",)),
    ("", "namespaces", ("get",)),  # its own: by its uid agents know that they reach the same
)


async def missing_rights(client: Client, namespace: str, refused: Refused) -> LauncherUnavailable:
    """What to tell when the server forbids something: with all that is missing, not only the first of it."""
    missing = []
    for group, resource, verbs in NEEDED:
        lacking = [verb for verb in verbs if not await _may(client, namespace, group, resource, verb)]
        if lacking:
            missing.append(f"{', '.join(lacking)} {resource}")
    if not missing:
        return LauncherUnavailable(f"the cluster refuses: {refused.detail}", "It is tried again.")
    return LauncherUnavailable(
        f"the agent may not use namespace {namespace}: it lacks the rights to {'; '.join(missing)}",
        f"Give it a Role with them in namespace {namespace}; what it has takes effect by itself.",
    )


async def _may(client: Client, namespace: str, group: str, resource: str, verb: str) -> bool:
    """https://kubernetes.io/docs/reference/access-authn-authz/authorization/#checking-api-access"""
    resource, _, part = resource.partition("/")
    wanted = {"namespace": namespace, "group": group, "resource": resource, "subresource": part, "verb": verb}
    if resource == "namespaces":
        wanted["name"] = namespace  # it may be allowed that one alone
    review = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SelfSubjectAccessReview",
        "spec": {"resourceAttributes": wanted},
    }
    try:
        found = await client.call(
            "POST", "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", body=review
        )
    except (Refused, LauncherUnavailable):
        return True  # it cannot be known
    return bool(found.get("status", {}).get("allowed"))
