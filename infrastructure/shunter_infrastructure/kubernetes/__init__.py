"""The kubernetes launcher: each attempt is a Job of a cluster, in the namespace that its pool's template names.

:mod:`manifest` makes the Job from a run and its pool's template; :mod:`client` carries requests to the API server;
:mod:`watch` knows all Jobs and pods of a namespace by two requests that last; :mod:`output` copies what is written;
:mod:`causes` reads what a launch waits for, :mod:`ending` how it ended; :mod:`leftovers` removes what nobody owns
any more; :mod:`launcher` is the contract.
"""
