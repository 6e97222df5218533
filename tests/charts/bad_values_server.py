"""Values that the chart shunter-server refuses, by its schema or by what its templates compare."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

#: Right by themselves; each row changes one thing of them.
RIGHT: Mapping[str, Any] = {}

_URL = {"type": "postgres", "existingSecret": "db"}
_SHARED = {"accessModes": ["ReadWriteMany"]}


def _trust(**more: Any) -> dict[str, Any]:
    return {"trust": [{"serviceAccount": "agents", "pools": ["cluster"], **more}]}


#: Values beside RIGHT (over it), and a pattern (re.search) that the error has: it names the value.
ROWS: Sequence[tuple[Mapping[str, Any], str]] = (
    # What no option is called.
    ({"imagee": {}}, r"at '': additional properties 'imagee' not allowed"),
    ({"image": {"colour": "red"}}, r"at '/image': additional properties 'colour' not allowed"),
    (
        {"database": {"url": "postgresql://a:b@c/d"}},
        r"at '/database': additional properties 'url' not allowed",
    ),
    ({"database": {"password": "secret"}}, r"at '/database': additional properties 'password' not allowed"),
    (
        {"networkPolicy": {"egress": {"to": []}}},
        r"at '/networkPolicy/egress': additional properties 'to' not allowed",
    ),
    (
        {"proxy": {"false": []}},
        r"at '/proxy': additional properties 'false' not allowed",
    ),  # so YAML reads `no: []`
    ({"settings": {"servr": {}}}, r"at '/settings': additional properties 'servr' not allowed"),
    (
        {"settings": {"server": {"late_aftr": "3s"}}},
        r"at '/settings/server': additional properties 'late_aftr' not allowed",
    ),
    # Settings that other values give.
    (
        {"settings": {"server": {"host": "::"}}},
        r"at '/settings/server': additional properties 'host' not allowed",
    ),
    (
        {"settings": {"server": {"trust": "[]"}}},
        r"at '/settings/server': additional properties 'trust' not allowed",
    ),
    (
        {"settings": {"server": {"database_url": "a"}}},
        r"at '/settings/server': additional properties 'database_url' not allowed",
    ),
    # Of the wrong type, or what cannot be.
    ({"replicas": "two"}, r"at '/replicas': got string, want integer"),
    ({"replicas": -1}, r"at '/replicas': minimum"),
    ({"image": {"tag": 5}}, r"at '/image/tag': got number, want string"),
    ({"image": {"repository": ""}}, r"at '/image/repository': minLength"),
    ({"image": {"digest": "0123"}}, r"at '/image/digest': .* does not match pattern"),
    ({"image": {"pullPolicy": "Sometimes"}}, r"at '/image/pullPolicy': value must be one of"),
    ({"fullnameOverride": "Queue"}, r"at '/fullnameOverride': .* does not match pattern"),
    ({"fullnameOverride": "q" * 53}, r"at '/fullnameOverride': maxLength"),
    ({"commonLabels": {"a": True}}, r"at '/commonLabels/a': got boolean, want string"),
    ({"database": {"type": "mysql"}}, r"at '/database/type': value must be one of 'sqlite', 'postgres'"),
    ({"database": {"port": 70000}}, r"at '/database/port': maximum"),
    ({"database": {"type": "postgres", "host": "a:5432"}}, r"at '/database/host': .* does not match pattern"),
    ({"database": {**_URL, "sslMode": "always"}}, r"at '/database/sslMode': value must be one of"),
    ({"persistence": {"size": "10 GB"}}, r"at '/persistence/size': .* does not match pattern"),
    ({"persistence": {"accessModes": []}}, r"at '/persistence/accessModes': minItems"),
    (
        {"persistence": {"accessModes": ["ReadOnlyMany"]}},
        r"at '/persistence/accessModes/0': value must be one of",
    ),
    ({"backup": {"keep": 0}}, r"at '/backup/keep': minimum"),
    ({"backup": {"schedule": "at night"}}, r"at '/backup/schedule': .* does not match pattern"),
    (
        {"tls": {"mode": "plaintext"}},
        r"at '/tls/mode': value must be one of 'plaintext-in-cluster', 'secret'",
    ),
    ({"service": {"type": "ExternalName"}}, r"at '/service/type': value must be one of"),
    ({"service": {"port": 0}}, r"at '/service/port': minimum"),
    ({"allowedHosts": ["https://a.example.com"]}, r"at '/allowedHosts/0': .* does not match pattern"),
    (
        {"oidc": {"issuer": "http://a.example.com", "clientId": "a"}},
        r"at '/oidc/issuer': .* does not match pattern",
    ),
    ({"oidc": {"roles": ["groups=a:root"]}}, r"at '/oidc/roles/0': .* does not match pattern"),
    ({"proxy": {"http": "proxy:3128"}}, r"at '/proxy/http': .* does not match pattern"),
    ({"podLabels": ["a"]}, r"at '/podLabels': got array, want object"),
    ({"livenessProbe": 5}, r"at '/livenessProbe': got number"),
    ({"resources": "small"}, r"at '/resources': got string, want object"),
    (
        {"terminationGracePeriodSeconds": "30s"},
        r"at '/terminationGracePeriodSeconds': got string, want integer",
    ),
    ({"networkPolicy": {"enabled": "yes"}}, r"at '/networkPolicy/enabled': got string, want boolean"),
    (
        {"podDisruptionBudget": {"minAvailable": "half"}},
        r"at '/podDisruptionBudget/minAvailable': .* does not match pattern",
    ),
    ({"autoscaling": {"minReplicas": 0}}, r"at '/autoscaling/minReplicas': minimum"),
    ({"extraEnv": [{"value": "a"}]}, r"at '/extraEnv/0': missing property 'name'"),
    ({"extraEnv": {"TZ": "UTC"}}, r"at '/extraEnv': got object, want array"),
    (
        {"settings": {"server": {"late_after": "soon"}}},
        r"at '/settings/server/late_after': .* does not match pattern",
    ),
    ({"settings": {"server": {"rate_limit": 0}}}, r"at '/settings/server/rate_limit': minimum"),
    ({"settings": {"keep": {"runs": "all"}}}, r"at '/settings/keep/runs': got string, want integer"),
    ({"settings": {"log": {"level": "loud"}}}, r"at '/settings/log/level': value must be one of"),
    # Service accounts that cannot be believed.
    ({"trust": [{"serviceAccount": "agents"}]}, r"at '/trust/0': missing property 'pools'"),
    ({"trust": [{"pools": ["cluster"]}]}, r"at '/trust/0': missing property 'serviceAccount'"),
    (_trust(pools=[]), r"at '/trust/0/pools': minItems"),
    (_trust(pools="cluster"), r"at '/trust/0/pools': got string, want array"),
    (_trust(serviceAccount="a/b/c"), r"at '/trust/0/serviceAccount': .* does not match pattern"),
    (_trust(managePool=True), r"at '/trust/0': additional properties 'managePool' not allowed"),
    (_trust(jwks="/far/keys"), r"trust\[0\]\.jwks[^\n]*needs trust\[0\]\.issuer"),
    (_trust(tokenFile="/far/token"), r"trust\[0\]\.tokenFile[^\n]*needs trust\[0\]\.apiServer"),
    (
        _trust(review=True, issuer="https://a.example.com"),
        r"trust\[0\]\.review[^\n]*needs trust\[0\]\.apiServer",
    ),
    (
        _trust(issuer="https://a.example.com", jwks="/far/keys", apiServer="https://b.example.com"),
        r"trust\[0\]\.jwks[^\n]*contradict each other",
    ),
    (
        {"trust": [{"serviceAccount": name, "pools": ["a"]} for name in ("agents", "trains/agents")]},
        r"trust\[1\]\.serviceAccount[^\n]*is there twice",
    ),
    # What does not fit together.
    ({"replicas": 2}, r"replicas: 2 cannot be with database\.type: sqlite"),
    ({"replicas": 2, "database": _URL}, r"replicas[^\n]*persistence\.accessModes must have ReadWriteMany"),
    (
        {"replicas": 2, "database": _URL, "persistence": {"enabled": False, **_SHARED}},
        r"replicas[^\n]*persistence\.accessModes must have ReadWriteMany",
    ),
    ({"autoscaling": {"enabled": True}}, r"autoscaling\.enabled[^\n]*cannot be with database\.type: sqlite"),
    (
        {"autoscaling": {"enabled": True}, "database": _URL},
        r"autoscaling\.enabled[^\n]*persistence\.accessModes must have ReadWriteMany",
    ),
    (
        {"autoscaling": {"enabled": True, "minReplicas": 5}, "database": _URL, "persistence": _SHARED},
        r"autoscaling\.minReplicas[^\n]*is more than autoscaling\.maxReplicas",
    ),
    ({"database": {"type": "postgres"}}, r"needs database\.existingSecret"),
    ({"database": {"type": "postgres", "host": "a"}}, r"database\.host needs database\.passwordSecret"),
    ({"database": {**_URL, "host": "a"}}, r"database\.existingSecret[^\n]*contradict it"),
    (
        {"database": {"existingSecret": "db"}},
        r"database\.existingSecret[^\n]*Did you mean database\.type: postgres\?",
    ),
    ({"database": {"host": "a"}}, r"database\.host[^\n]*Did you mean database\.type: postgres\?"),
    ({"backup": {"enabled": True}, "database": _URL}, r"backup\.enabled[^\n]*is for database\.type: sqlite"),
    (
        {"backup": {"enabled": True}, "persistence": {"enabled": False}},
        r"backup\.enabled[^\n]*needs persistence\.enabled",
    ),
    (
        {"backup": {"enabled": True}, "persistence": {"accessModes": ["ReadWriteOncePod"]}},
        r"backup\.enabled[^\n]*cannot be with persistence\.accessModes: ReadWriteOncePod",
    ),
    ({"tls": {"mode": "secret"}}, r"tls\.mode: secret needs tls\.secretName"),
    ({"tls": {"secretName": "cert"}}, r"tls\.secretName[^\n]*has no use for it\. Use tls\.mode: secret\."),
    ({"oidc": {"issuer": "https://a.example.com"}}, r"oidc\.clientId[^\n]*go together"),
    ({"oidc": {"clientId": "a"}}, r"oidc\.issuer[^\n]*go together"),
    ({"oidc": {"roles": ["groups=a:admin"]}}, r"oidc\.roles[^\n]*without oidc\.issuer"),
    ({"ingress": {"enabled": True}}, r"ingress\.enabled needs ingress\.hosts"),
    (
        {"ingress": {"enabled": True, "hosts": [{"path": "/"}]}},
        r"at '/ingress/hosts/0': missing property 'host'",
    ),
    (
        {"ingress": {"enabled": True, "hosts": [{"host": "*.example.com"}]}},
        r"at '/ingress/hosts/0/host': .* does not match pattern",
    ),
    (
        {"gateway": {"enabled": True, "hostnames": ["a.example.com"]}},
        r"gateway\.enabled needs gateway\.parentRefs",
    ),
    (
        {"gateway": {"enabled": True, "parentRefs": [{"name": "a"}]}},
        r"gateway\.enabled needs gateway\.hostnames",
    ),
    ({"serviceMonitor": {"enabled": True}}, r"needs serviceMonitor\.tokenSecret"),
    ({"podDisruptionBudget": {"minAvailable": 1}}, r"podDisruptionBudget\.minAvailable[^\n]*set one of them"),
    (
        {"podDisruptionBudget": {"maxUnavailable": None}},
        r"podDisruptionBudget\.maxUnavailable[^\n]*set one of them",
    ),
    ({"ca": {"secret": "a", "configMap": "b"}}, r"ca\.secret[^\n]*contradict each other"),
    ({"rbac": {"create": False}}, r"rbac\.create[^\n]*needs bootstrap\.serviceAccountName"),
    (
        {"auth": {"existingSecret": "a"}, "bootstrap": {"serviceAccountName": "b"}},
        r"auth\.existingSecret[^\n]*contradicts bootstrap\.serviceAccountName",
    ),
    ({"extraEnv": [{"name": "SHUNTER_TOKEN", "value": "a"}]}, r"extraEnv[^\n]*SHUNTER_TOKEN is set twice"),
    # All faults are told at once.
    (
        {"replicas": 3, "tls": {"mode": "secret"}},
        r"replicas: 3 cannot be with[^\n]*\ntls\.mode: secret needs tls\.secretName",
    ),
)
