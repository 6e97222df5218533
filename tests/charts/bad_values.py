"""What a bad value is in a test: it is set beside good ones, and Helm has to say what is wrong with it."""

from __future__ import annotations

from typing import Any, NamedTuple


class Bad(NamedTuple):
    """A row of ``bad_values_agent.py`` or ``bad_values_server.py``.

    Attributes:
        value: the option that the message has to name: ``image.tag``.
        values: what is set, beside what the chart needs at the least.
        told: a part of the message, word for word.
    """

    value: str
    values: dict[str, Any]
    told: str

    def named_in(self, message: str) -> bool:
        """Whether a message names the value: as people write it, or as schemas do (an unknown key by its parent)."""
        *above, key = self.value.split(".")
        return (
            self.value in message
            or f"'/{self.value.replace('.', '/')}'" in message
            or (f"at '{'/' + '/'.join(above) if above else ''}'" in message and f"'{key}'" in message)
        )
