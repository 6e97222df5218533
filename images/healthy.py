"""Whether what this container runs says that it is well: exit code 0, else 1.

Docker asks every few seconds for as long as a container lives, so this loads next to nothing: no Shunter, no HTTP
library. What is asked is ``/healthz`` of the port in a variable, on this machine.

``healthy.py VARIABLE PORT``: PORT where the variable is not set.
"""

from __future__ import annotations

import os
import socket
import sys

#: Seconds for the whole question; Docker gives up a little later.
PATIENCE = 4


def healthy(port: int, *, tls: bool) -> bool:
    """Whether the answer is 200.

    Raises:
        OSError: there is none.
    """
    connection: socket.socket = socket.create_connection(("127.0.0.1", port), PATIENCE)
    if tls:
        import ssl

        # Nothing secret is said, and the certificate is in other names than this one.
        context = ssl._create_unverified_context()
        connection = context.wrap_socket(connection)
    with connection:
        connection.sendall(b"GET /healthz HTTP/1.0\r\nHost: 127.0.0.1\r\n\r\n")
        return connection.recv(64).split(b" ", 2)[1:2] == [b"200"]


if __name__ == "__main__":
    variable, default = sys.argv[1:]
    try:
        well = healthy(
            int(os.environ.get(variable) or default), tls=bool(os.environ.get("SHUNTER_SERVER_TLS_CERT"))
        )
    except OSError as exc:
        sys.exit(str(exc))
    sys.exit(not well)
