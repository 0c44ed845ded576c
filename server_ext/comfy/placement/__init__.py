"""Parts of ordinary workflows run elsewhere: from POST /prompt to the messages and the history, in the terms of what was sent."""

from __future__ import annotations

__all__: list[str] = []
