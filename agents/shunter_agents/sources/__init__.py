"""The code of runs and the environments they run in: fetched or built once, kept, shared, and removed when old.

``code`` holds the two steps of :data:`~shunter_agents.supervisor.Preparing`. Below it: ``git`` and ``archive`` fetch,
``extraction`` unpacks, ``environment`` builds, and ``shelf`` keeps what they make.
"""
