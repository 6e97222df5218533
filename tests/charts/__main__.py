"""``python -m tests.charts``: what charts are checked with, by hand."""

from __future__ import annotations

import argparse
import sys

from tests.charts import documents
from tests.charts.building import tools
from tests.cluster.packages import CannotHaveCluster


def main() -> None:
    """Do one thing; the exit code is 1 with one message if it cannot be done."""
    parser = argparse.ArgumentParser(prog="python -m tests.charts", description=__doc__)
    deeds = parser.add_subparsers(dest="deed", required=True, metavar="DEED")
    deeds.add_parser("build", help="only build the tools, into the cache; print the path of their folder")
    deeds.add_parser("document", help="write the README of each chart from its values")
    given = parser.parse_args()
    try:
        if given.deed == "build":
            print(tools().folder)
        else:
            documents.write(tools(), documents.CHARTS)
    except (CannotHaveCluster, documents.Undocumented) as error:
        sys.exit(f"{parser.prog} {given.deed}: {error}")


if __name__ == "__main__":
    main()
