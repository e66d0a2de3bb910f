"""Settings of the load check."""

from __future__ import annotations

from typing import Annotated

from pydantic import model_validator

from stages.settings.fields import Table, between


class Load(Table):
    """The load check and its thresholds; milliseconds unless the name says otherwise."""

    users: Annotated[int, between(1, 500, "a number of users")]
    spawn_rate: Annotated[float, between(0.1, 100, "users to start per second")]
    seconds: Annotated[int, between(10, 3600, "a duration in seconds")]
    max_error_rate: Annotated[float, between(0, 0.2, "the share of requests that may fail, as a fraction")]
    max_read_p95_ms: Annotated[int, between(1, 60000, "milliseconds")]
    max_write_p95_ms: Annotated[int, between(1, 60000, "milliseconds")]
    min_rps: Annotated[float, between(0.1, 100000, "requests per second")]
    max_slowdown: Annotated[float, between(1, 1000, "times the medians of the release before")]

    @model_validator(mode="after")
    def _spawns_in_time(self) -> Load:
        if self.users / self.spawn_rate > self.seconds / 2:
            raise ValueError(
                f"{self.users} users at {self.spawn_rate:g} per second are not all there before half of the"
                f" {self.seconds} seconds are over: raise spawn_rate or seconds"
            )
        return self
