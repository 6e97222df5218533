"""On an agent's PYTHONPATH: names ending in .test are looked up in the JSON file ``SHUNTER_TEST_NAMES``.

A name that is not in it does not resolve, as if no name server could be reached.
"""

from __future__ import annotations

import json
import os
import socket
from typing import Any

_resolve = socket.getaddrinfo


def _getaddrinfo(host: Any, *args: Any, **more: Any) -> Any:
    name = host.decode() if isinstance(host, bytes) else host
    if isinstance(name, str) and name.endswith(".test"):
        with open(os.environ["SHUNTER_TEST_NAMES"]) as file:
            known = json.load(file)
        if name not in known:
            raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
        host = known[name]
    return _resolve(host, *args, **more)


socket.getaddrinfo = _getaddrinfo
