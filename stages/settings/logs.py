"""Settings of an environment's logs."""

from __future__ import annotations

from typing import Literal

from stages.settings.fields import Table


class Logs(Table):
    """How long logs are kept, and under whose key. The days are those that CloudWatch Logs has."""

    days: Literal[30, 60, 90, 120, 150, 180, 365, 400, 545, 731, 1096, 1827, 2192, 2557, 2922, 3288, 3653] = (
        90
    )
    own_key: bool = False
