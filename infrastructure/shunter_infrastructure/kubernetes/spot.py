"""Spot nodes: the labels and taints by which the clouds mark them."""

from __future__ import annotations

from typing import Any, Literal

Spot = Literal["allowed", "preferred", "required"] | None

#: Label and value of a spot node: of GKE, EKS' managed groups, AKS and Karpenter. Where such nodes have a taint, it
#: is the same (AKS taints them by itself, the others where somebody says so).
MARKS = {
    "cloud.google.com/gke-spot": "true",
    "eks.amazonaws.com/capacityType": "SPOT",
    "kubernetes.azure.com/scalesetpriority": "spot",
    "karpenter.sh/capacity-type": "spot",
}


def tolerations(spot: Spot) -> list[dict[str, Any]]:
    """For the taints of spot nodes."""
    if spot is None:
        return []
    return [
        {"key": key, "operator": "Equal", "value": value, "effect": "NoSchedule"}
        for key, value in MARKS.items()
    ]


def affinity(spot: Spot) -> dict[str, Any] | None:
    """To spot nodes of any cloud: terms are alternatives."""
    terms = [
        {"matchExpressions": [{"key": key, "operator": "In", "values": [value]}]}
        for key, value in MARKS.items()
    ]
    if spot == "required":
        rule: dict[str, Any] = {
            "requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}
        }
    elif spot == "preferred":
        weighed = [{"weight": 100, "preference": term} for term in terms]
        rule = {"preferredDuringSchedulingIgnoredDuringExecution": weighed}
    else:
        return None
    return {"nodeAffinity": rule}
