"""What docs/from-prefect.md shows."""

from __future__ import annotations

import re
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "from-prefect.md"


def blocks() -> list[str]:
    """Its Python: a flow of Prefect, and the same of Shunter."""
    return re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)
