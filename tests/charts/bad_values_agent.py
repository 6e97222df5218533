"""Values that the chart for agents refuses, and what it says of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

#: Right by themselves; each row changes one thing of them.
RIGHT: Mapping[str, Any] = {"api": {"url": "http://server:4400/api"}, "pools": ["cluster"]}

_KEDA = {"enabled": True}
_KEY = {"secret": {"name": "metrics"}}

#: Values beside RIGHT (over it), and a pattern (re.search) that the error has: it names the value.
ROWS: Sequence[tuple[Mapping[str, Any], str]] = (
    # Missing.
    ({"api": {"url": ""}}, r"api\.url is missing: the address of the server's API"),
    ({"pools": []}, r"pools is empty: name at least one pool"),
    ({"api": {"url": ""}, "pools": []}, r"api\.url is missing[^\n]*\n\s*pools is empty"),
    # Wrong types and forms.
    ({"pools": "cluster"}, r"at '/pools': got string, want array"),
    ({"pools": ["two words"]}, r"at '/pools/0': 'two words' does not match pattern"),
    ({"pools": ["a", "a"]}, r"at '/pools': items at 0 and 1 are equal"),
    ({"replicas": "two"}, r"at '/replicas': got string, want integer"),
    ({"replicas": -1}, r"at '/replicas': minimum: got -1, want 0"),
    ({"limit": 0}, r"at '/limit': minimum: got 0, want 1"),
    ({"limit": 1.5}, r"at '/limit': got number, want null or integer"),
    ({"api": {"url": "server:4400"}}, r"at '/api/url': 'server:4400' does not match pattern"),
    ({"createPools": "yes"}, r"at '/createPools': got string, want boolean"),
    ({"once": 1}, r"at '/once': got number, want boolean"),
    ({"match": ["no spaces here"]}, r"at '/match/0': 'no spaces here' does not match pattern"),
    ({"tags": "gpu"}, r"at '/tags': got string, want array"),
    ({"template": ["image=a"]}, r"at '/template': got array, want object"),
    ({"policy": ["launchers"]}, r"at '/policy': got array, want string"),
    ({"namespaces": ["Runs"]}, r"at '/namespaces/0': 'Runs' does not match pattern"),
    ({"capacity": {"gpu": [1]}}, r"at '/capacity/gpu': got array, want number or string"),
    (
        {"poolType": "process", "drainGrace": "10 minutes"},
        r"at '/drainGrace': '10 minutes' does not match pattern",
    ),
    ({"poolType": "process", "drainGrace": 600}, r"at '/drainGrace': got number, want null or string"),
    ({"state": {"sizeLimit": "2 GB"}}, r"at '/state/sizeLimit': '2 GB' does not match pattern"),
    ({"state": {"spoolLimit": "much"}}, r"at '/state/spoolLimit': 'much' does not match pattern"),
    (
        {"image": {"repository": "localhost/shunter-agent:0.1.0"}},
        r"at '/image/repository': '[^']*' does not match pattern",
    ),
    ({"image": {"digest": "0123"}}, r"at '/image/digest': '0123' does not match pattern"),
    ({"image": {"pullPolicy": "Sometimes"}}, r"at '/image/pullPolicy': value must be one of 'Always'"),
    ({"imagePullSecrets": ["registry"]}, r"at '/imagePullSecrets/0': got string, want object"),
    (
        {"auth": {"serviceAccount": {"expirationSeconds": 60}}},
        r"expirationSeconds': minimum: got 60, want 600",
    ),
    ({"extraEnv": [{"value": "a"}]}, r"at '/extraEnv/0': missing property 'name'"),
    ({"podAnnotations": {"a": 1}}, r"at '/podAnnotations/a': got number, want string"),
    (
        {"networkPolicy": {"egress": {"apiServerPorts": [70000]}}},
        r"apiServerPorts/0': maximum: got 70,?000, want 65,?535",
    ),
    ({"metricsHost": ""}, r"at '/metricsHost': minLength: got 0, want 1"),
    ({"test": {"timeout": "soon"}}, r"at '/test/timeout': 'soon' does not match pattern"),
    # Unknown.
    ({"replicaCount": 2}, r"additional properties 'replicaCount' not allowed"),
    ({"api": {"uri": "http://server"}}, r"at '/api': additional properties 'uri' not allowed"),
    ({"auth": {"token": "she_..."}}, r"at '/auth': additional properties 'token' not allowed"),
    ({"autoscaling": {"enabled": True}}, r"at '/autoscaling': additional properties 'enabled' not allowed"),
    ({"proxy": {"no": ["a"]}}, r"at '/proxy': additional properties 'no' not allowed"),
    ({"poolType": "docker"}, r"at '/poolType': value must be one of 'kubernetes', 'process'"),
    # What is needed, taken away.
    ({"auth": None}, r"missing property 'auth'"),
    ({"template": None}, r"missing property 'template'"),
    # Authentication that contradicts itself.
    ({"auth": {"mode": "token"}}, r"at '/auth/mode': value must be one of 'serviceAccount'"),
    ({"auth": {"mode": "existingSecret"}}, r"auth\.existingSecret\.name is missing"),
    (
        {"auth": {"existingSecret": {"name": "key"}}},
        r"auth\.existingSecret\.name is set, but auth\.mode is serviceAccount",
    ),
    ({"auth": {"mode": "enrolment"}}, r"auth\.enrolment\.name is missing"),
    (
        {"auth": {"enrolment": {"name": "key"}}},
        r"auth\.enrolment\.name is set, but auth\.mode is serviceAccount",
    ),
    (
        {"auth": {"mode": "enrolment", "enrolment": {"name": "a"}, "existingSecret": {"name": "b"}}},
        r"auth\.existingSecret\.name is set, but auth\.mode is enrolment",
    ),
    (
        {"auth": {"mode": "enrolment", "enrolment": {"name": "a"}}, "pools": ["a", "b"]},
        r"pools has 2 names, but an invitation \(auth\.mode enrolment\) is for one pool",
    ),
    ({"extraEnv": [{"name": "SHUNTER_TOKEN", "value": "a"}]}, r"extraEnv sets SHUNTER_TOKEN, .* auth\.mode"),
    ({"ca": {"secret": "a", "configMap": "b"}}, r"ca\.secret and ca\.configMap are both set"),
    # Pools.
    ({"createPools": False, "template": {"image": "a"}}, r"template has an effect only with createPools"),
    ({"createPools": False, "match": ["a"]}, r"match has an effect only with createPools"),
    ({"template": {"secret_env": {"A": "b"}}}, r"template\.secret_env\.A would be readable in a ConfigMap"),
    (
        {"template": {"namespace": "elsewhere"}},
        r"template\.namespace is elsewhere, where the agents have no rights",
    ),
    (
        {"template": {"namespace": "elsewhere"}, "namespaces": ["runs", "batch"]},
        r"template\.namespace is elsewhere, .* namespaces, which is runs, batch",
    ),
    # Rights.
    ({"serviceAccount": {"create": False}}, r"serviceAccount\.name is missing"),
    ({"rbac": {"create": False}, "namespaces": ["runs"]}, r"namespaces is set, but rbac\.create is false"),
    ({"poolType": "process", "namespaces": ["runs"]}, r"namespaces has no meaning for process pools"),
    # How many.
    (
        {"autoscaling": {"hpa": {"enabled": True}, "keda": _KEDA, "metrics": _KEY}},
        r"autoscaling\.hpa\.enabled and autoscaling\.keda\.enabled contradict each other",
    ),
    (
        {
            "poolType": "process",
            "autoscaling": {"keda": _KEDA, "scaledJob": {"enabled": True}, "metrics": _KEY},
        },
        r"autoscaling\.keda\.enabled and autoscaling\.scaledJob\.enabled contradict each other",
    ),
    (
        {"autoscaling": {"scaledJob": {"enabled": True}, "metrics": _KEY}},
        r"scaledJob\.enabled is for process pools, but poolType is kubernetes",
    ),
    ({"poolType": "process", "once": True}, r"once is set without autoscaling\.scaledJob\.enabled"),
    (
        {
            "poolType": "process",
            "once": True,
            "limit": 4,
            "autoscaling": {"scaledJob": {"enabled": True}, "metrics": _KEY},
        },
        r"limit is 4, but with once an agent takes one run",
    ),
    (
        {"autoscaling": {"hpa": {"enabled": True, "targetCPU": None}}},
        r"autoscaling\.hpa\.enabled is set, but there is nothing",
    ),
    (
        {"autoscaling": {"hpa": {"enabled": True, "minReplicas": 6}}},
        r"autoscaling\.hpa\.minReplicas is 6, more than maxReplicas, which is 5",
    ),
    (
        {"autoscaling": {"hpa": {"enabled": True, "minReplicas": 0}}},
        r"at '/autoscaling/hpa/minReplicas': minimum: got 0, want 1",
    ),
    (
        {"autoscaling": {"keda": {"enabled": True, "minReplicas": 11}, "metrics": _KEY}},
        r"autoscaling\.keda\.minReplicas is 11, more than maxReplicas, which is 10",
    ),
    (
        {"autoscaling": {"keda": _KEDA}},
        r"autoscaling\.keda\.enabled needs autoscaling\.metrics\.secret\.name",
    ),
    (
        {"autoscaling": {"keda": _KEDA, "metrics": {"source": "prometheus"}}},
        r"autoscaling\.keda\.enabled needs autoscaling\.metrics\.prometheusAddress",
    ),
    (
        {"autoscaling": {"metrics": {"source": "datadog"}}},
        r"at '/autoscaling/metrics/source': value must be one of 'server', 'prometheus'",
    ),
    (
        {"autoscaling": {"keda": _KEDA, "metrics": {**_KEY, "authenticationRef": {"name": "a"}}}},
        r"autoscaling\.metrics\.secret\.name and autoscaling\.metrics\.authenticationRef are both set",
    ),
    (
        {"queues": ["urgent"], "autoscaling": {"keda": _KEDA, "metrics": _KEY}},
        r"queues contradicts autoscaling\.keda\.enabled: the server tells what whole pools want",
    ),
    (
        {
            "poolType": "process",
            "queues": ["urgent"],
            "autoscaling": {"scaledJob": {"enabled": True}, "metrics": _KEY},
        },
        r"queues contradicts autoscaling\.scaledJob\.enabled",
    ),
    # How they stop.
    ({"drainGrace": "10m"}, r"drainGrace is for process pools, but poolType is kubernetes"),
    (
        {"poolType": "process", "terminationGracePeriodSeconds": 600},
        r"terminationGracePeriodSeconds is 600, not more than drainGrace, which is 600 seconds",
    ),
    (
        {"podDisruptionBudget": {"maxUnavailable": None}},
        r"podDisruptionBudget\.maxUnavailable and podDisruptionBudget\.minAvailable are both missing",
    ),
    ({"podDisruptionBudget": {"maxUnavailable": "half"}}, r"at '/podDisruptionBudget/maxUnavailable'"),
    # Names that are taken.
    (
        {"extraEnv": [{"name": "SHUNTER_API_URL", "value": "a"}]},
        r"extraEnv sets SHUNTER_API_URL, which the chart sets",
    ),
    ({"extraEnv": [{"name": "A", "value": "a"}, {"name": "A", "value": "b"}]}, r"extraEnv sets A twice"),
    ({"extraVolumes": [{"name": "home", "emptyDir": {}}]}, r"extraVolumes has a volume called home"),
    ({"extraContainers": [{"name": "agent", "image": "a"}]}, r"container called agent"),
)
