"""Settings of the server's image."""

from __future__ import annotations

from typing import Annotated, Literal

from stages.settings.fields import Table, matching


class Image(Table):
    """What the image is made from and for. It is one for all environments: what was tried in dev is what prod runs."""

    architecture: Literal["x86", "arm64"] = "x86"
    base: (
        Annotated[
            str,
            matching(
                r"[a-z0-9]+([._:-][a-z0-9]+)*(/[a-z0-9]+([._-]+[a-z0-9]+)*)+:[\w][\w.-]{0,127}@sha256:[0-9a-f]{64}",
                "write registry/name:tag@sha256:DIGEST; `docker buildx imagetools inspect registry/name:tag` shows"
                " the digest",
            ),
        ]
        | None
    ) = None
