"""``python -m shunter_agents``: the agent without the command line's libraries, which it has no use for."""

from __future__ import annotations

import argparse
import sys

from shunter_agents.daemon import run_agent
from shunter_agents.options import lifetime
from shunter_work_pools.contracts.errors import InvalidInput, ShunterError
from shunter_work_pools.contracts.plain_text import plain
from shunter_work_pools.contracts.settings import SETTINGS


def main() -> int:
    """Parse the arguments of ``shunter agent start`` and run."""
    parser = argparse.ArgumentParser(prog="shunter agent start")
    parser.add_argument("--pool", action="append", default=[], dest="pools")
    parser.add_argument("--queue", action="append", default=[], dest="queues")
    parser.add_argument("--tag", action="append", default=[], dest="tags")
    parser.add_argument("--name")
    parser.add_argument("--once", action="store_true")
    parser.add_argument("--until-idle", action="store_true")
    parser.add_argument("--max-lifetime", type=lifetime)
    parser.add_argument("--take-over", action="store_true")
    parser.add_argument("--create-pool")
    parser.add_argument("--template-file")
    parser.add_argument("--match", action="append")
    parser.add_argument("--no-match", action="store_const", const=[], dest="match")
    of_agent = [setting for name, setting in SETTINGS.items() if name.startswith("agent.")]
    for setting in of_agent:
        action = argparse.BooleanOptionalAction if setting.switch else "append" if setting.many else "store"
        parser.add_argument(setting.flag, dest=setting.name, action=action)
    given = parser.parse_args()
    try:
        return run_agent(
            given.pools,
            settings={setting.name: getattr(given, setting.name) for setting in of_agent},
            queues=given.queues,
            tags=given.tags,
            name=given.name,
            once=given.once,
            until_idle=given.until_idle,
            max_lifetime=given.max_lifetime,
            take_over=given.take_over,
            create_pool=given.create_pool,
            template_file=given.template_file,
            match=given.match,
        )
    except ShunterError as error:
        sys.stderr.write(f"Error: {plain(error.detail, lines=True)}\n")
        for line in error.remedy.splitlines():
            sys.stderr.write(f"  {plain(line)}\n")
        return 2 if isinstance(error, InvalidInput) else 1


if __name__ == "__main__":
    sys.exit(main())
