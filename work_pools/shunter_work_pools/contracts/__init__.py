"""What every part of Shunter agrees on: states, runs, pools, leases, errors.

A leaf package: it imports pydantic and the standard library only. Server, agents, client and command
line all build on it and on nothing of each other.
"""

#: Version of the protocol between server and clients. Server N serves agents N and N-1.
PROTOCOL = 3
#: What a server serves.
SERVED_PROTOCOLS = (PROTOCOL - 1, PROTOCOL)

#: Sent by the server with every answer, checked by every client.
PROTOCOL_HEADER = "Shunter-Protocol"
