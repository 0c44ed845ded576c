"""Serverless endpoints: a RunPod endpoint, presented to this process as an endpoint of the protocol, and the messages and artifact stores that
caller and worker share."""

from __future__ import annotations

__all__: list[str] = []
