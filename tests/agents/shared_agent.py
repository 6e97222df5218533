"""An agent whose work is in a folder that others reach as well: ``shared_agent.py ENGINE [FLAG]...``."""

from __future__ import annotations

import sys
from pathlib import Path

from shunter_agents.__main__ import main
from shunter_infrastructure import registry
from shunter_infrastructure.fake import FakeLauncher


def launcher() -> FakeLauncher:
    """What its pools are served with, whatever their type."""
    return FakeLauncher(engine=ENGINE)


if __name__ == "__main__":
    ENGINE = Path(sys.argv.pop(1))
    registry._LAUNCHERS["process"] = ("__main__", "launcher")
    sys.exit(main())
