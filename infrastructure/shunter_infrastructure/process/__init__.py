"""The process launcher: an attempt is a process on the agent's machine, watched by a keeper of its own.

Kept empty on purpose: the forker imports its modules from here and must stay small. The launcher itself
is :class:`shunter_infrastructure.process.launcher.ProcessLauncher`.

Who is who, from the outside in::

    agent ── forker ── keeper ── command ── its children, daemonized or not
             (one)     (one per attempt)

* the **agent** asks over a socket pair for an attempt to be started (``launcher``, ``forker_client``);
* the **forker** does nothing but fork, from a small preloaded image (``forker``);
* the **keeper** starts the command, adopts every orphan of it, waits, stops the tree, and writes down how
  it ended (``keeper``). It outlives the agent and the forker.

Files in an attempt's folder, all mode 0600:

=================  ====================================================================================
``launch.json``    what to execute; written by the agent, read once by the keeper
``record``         JSON lines, appended by the keeper alone: who it is, what it started, how that ended
``output``         stdout and stderr of the command, in the order written
``lease``          of an exclusive attempt: when to ask it to end, and when nothing of it may run any more
                   (boot-time clock, seconds); replaced whole by the agent as long as the server answers it
``stop``           requests to stop, one line each: moment (boot-time clock) and grace, in seconds
``parameters.json``, ``result.json``, ``failure.json``   what goes into and comes out of the run, if anything
``work/``          the working folder, unless the deployment names one
``keeper.log``     only if the keeper itself failed: its traceback
=================  ====================================================================================

On macOS there is neither a subreaper nor ``/proc``: a child that leaves the session of its command
cannot be found there, and a process id is not told from its reuse.

As a systemd service the agent needs ``KillMode=process``; any other setting ends the keepers with it. What it takes
to limit memory there is in ``memory``.
"""
