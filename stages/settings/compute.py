"""Settings of the server's tasks."""

from __future__ import annotations

from typing import Annotated

from pydantic import model_validator

from stages.settings.fields import Table, between

# MiB of memory that Fargate sells for each CPU size.
# https://docs.aws.amazon.com/AmazonECS/latest/developerguide/fargate-tasks-services.html#fargate-tasks-size
FARGATE_SIZES: dict[int, range | tuple[int, ...]] = {
    256: (512, 1024, 2048),
    512: range(1024, 4096 + 1, 1024),
    1024: range(2048, 8192 + 1, 1024),
    2048: range(4096, 16384 + 1, 1024),
    4096: range(8192, 30720 + 1, 1024),
    8192: range(16384, 61440 + 1, 4096),
    16384: range(32768, 122880 + 1, 8192),
}


class Compute(Table):
    """How many tasks, and of which size."""

    tasks: Annotated[int, between(1, 50, "a number of tasks")]
    max_tasks: Annotated[int, between(1, 100, "a number of tasks")]
    cpu: int
    memory: int
    workers: Annotated[int, between(1, 16, "a number of server processes per task")]

    @model_validator(mode="after")
    def _sizes_fit(self) -> Compute:
        if self.cpu not in FARGATE_SIZES:
            raise ValueError(
                f"cpu = {self.cpu}: Fargate sells {', '.join(map(str, FARGATE_SIZES))}; take one of these"
            )
        sold = FARGATE_SIZES[self.cpu]
        if self.memory not in sold:
            raise ValueError(
                f"memory = {self.memory}: with cpu = {self.cpu} Fargate sells {_sizes(sold)}; take one of these"
            )
        if self.max_tasks < self.tasks:
            raise ValueError(
                f"max_tasks = {self.max_tasks}: must not be less than tasks = {self.tasks}; raise it"
            )
        return self


def _sizes(sold: range | tuple[int, ...]) -> str:
    if isinstance(sold, range):
        return f"{sold[0]} to {sold[-1]} MiB in steps of {sold.step}"
    return f"{', '.join(map(str, sold[:-1]))} or {sold[-1]} MiB"
