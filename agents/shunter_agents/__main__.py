"""``python -m shunter_agents``: the agent without the command line's libraries, which it has no use for."""

from __future__ import annotations

import argparse
import sys

from shunter_agents.daemon import run_agent
from shunter_work_pools.contracts.errors import InvalidInput, ShunterError


def main() -> int:
    """Parse the arguments of ``shunter agent start`` and run."""
    parser = argparse.ArgumentParser(prog="shunter agent start")
    parser.add_argument("--pool", action="append", required=True, dest="pools")
    parser.add_argument("--queue", action="append", default=[], dest="queues")
    parser.add_argument("--limit")
    parser.add_argument("--tag", action="append", default=[], dest="tags")
    parser.add_argument("--name")
    given = parser.parse_args()
    try:
        return run_agent(
            given.pools, queues=given.queues, limit=given.limit, tags=given.tags, name=given.name
        )
    except ShunterError as error:
        sys.stderr.write(f"Error: {error.detail}\n")
        for line in error.remedy.splitlines():
            sys.stderr.write(f"  {line}\n")
        return 2 if isinstance(error, InvalidInput) else 1


if __name__ == "__main__":
    sys.exit(main())
