"""The docker launcher: each attempt is a container of a Docker engine (or of Podman's Docker-compatible service).

:mod:`container` makes the container's configuration from a run and its pool's template; :mod:`engine` carries
calls to the engine, :mod:`images` fetches images; :mod:`events` and :mod:`output` follow what happens and what is written; :mod:`ending`
reads how it ended; :mod:`leftovers` removes what nobody owns any more; :mod:`launcher` is the contract.
"""
