"""Ports, blocks, nodes, edges, the registry and the graph: the first executable level."""

from yggdrasill.executor.context import RunContext, current_run
from yggdrasill.foundation.block import AbstractBaseBlock
from yggdrasill.foundation.contract import Resolver, Runnable
from yggdrasill.foundation.edge import Edge
from yggdrasill.foundation.node import Node
from yggdrasill.foundation.ports import Port, PortAggregation, PortDirection, PortType

__all__ = [
    "AbstractBaseBlock",
    "Edge",
    "Node",
    "Port",
    "PortAggregation",
    "PortDirection",
    "PortType",
    "Resolver",
    "RunContext",
    "Runnable",
    "current_run",
]
