"""The serverless worker: runs jobs of a RunPod endpoint, or of our own gateway, on a ComfyUI that it starts and watches.

`settings` reads the environment, `workspace` bounds the paths, `requests` lists the typed requests, `service` answers them, and
`handler` connects them to the ``runpod`` SDK.
"""

from __future__ import annotations

__all__: list[str] = []
