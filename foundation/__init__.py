"""Ports, blocks, nodes, edges, the registry and the graph: the first executable level."""

from yggdrasill.executor.context import RunContext, current_run
from yggdrasill.foundation.block import AbstractBaseBlock
from yggdrasill.foundation.contract import Resolver, Runnable
from yggdrasill.foundation.edges import Edge
from yggdrasill.foundation.graph import Graph
from yggdrasill.foundation.node import Node
from yggdrasill.foundation.pool import ReusePool
from yggdrasill.foundation.ports import ConfigField, Port, PortAggregation, PortDirection, PortType
from yggdrasill.foundation.registry import BlockRegistry, register_block
from yggdrasill.foundation.roles import (
    apply_auto_connect,
    get_rule_edges,
    role_from_block_type,
    suggest_edges_for_new_node,
    use_task_node_auto_connect,
)
from yggdrasill.foundation.templates import register_template, template_names
from yggdrasill.foundation.validation import ValidationResult

#: The name of `ConfigField` in the first releases.
Setting = ConfigField

__all__ = [
    "AbstractBaseBlock",
    "BlockRegistry",
    "ConfigField",
    "Edge",
    "Graph",
    "Node",
    "Port",
    "PortAggregation",
    "PortDirection",
    "PortType",
    "Resolver",
    "ReusePool",
    "RunContext",
    "Runnable",
    "Setting",
    "ValidationResult",
    "apply_auto_connect",
    "current_run",
    "get_rule_edges",
    "register_block",
    "register_template",
    "role_from_block_type",
    "suggest_edges_for_new_node",
    "template_names",
    "use_task_node_auto_connect",
]
