"""Work pools: the queue, the server that keeps it, and the client that talks to it."""
