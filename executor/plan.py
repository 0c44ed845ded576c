"""The plan: the order of the children, and the cycles among them. Pure functions; this module runs nothing."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

__all__ = ["CycleStep", "NodeStep", "Plan", "make_plan", "strong_components"]

NodeStep = tuple[Literal["node"], str]
CycleStep = tuple[Literal["cycle"], tuple[str, tuple[str, ...]]]
Step: TypeAlias = NodeStep | CycleStep


@dataclass(frozen=True, slots=True)
class Plan:
    """Steps in order: ``("node", id)`` or ``("cycle", (representative, ids))`` with the smallest id as representative."""

    steps: tuple[Step, ...]

    @property
    def cycles(self) -> list[tuple[str, ...]]:
        """The node ids of each cycle, in the order in which they run."""
        return [step[1][1] for step in self.steps if step[0] == "cycle"]


def make_plan(nodes: Sequence[str], edges: Iterable[tuple[str, str]], order_cycle: Callable[[list[str]], Sequence[str]] = sorted) -> Plan:
    """Order ``nodes`` so that sources come first; nodes ready at the same time keep the order in which they were given.

    Strongly connected components (Tarjan 1972) run as one step, their nodes in the order that ``order_cycle`` returns. The
    work is linear in nodes and edges.
    """
    index = {node: i for i, node in enumerate(nodes)}
    targets: list[list[int]] = [[] for _ in nodes]
    for source, target in edges:
        targets[index[source]].append(index[target])
    order = _topological(targets)
    if len(order) == len(nodes):
        return Plan(tuple(("node", nodes[i]) for i in order))
    return _plan_with_cycles(nodes, targets, order_cycle)


def _topological(targets: Sequence[Sequence[int]]) -> list[int]:
    """Return Kahn's order; it is shorter than the graph if the graph has a cycle."""
    waiting = [0] * len(targets)
    for row in targets:
        for target in row:
            waiting[target] += 1
    order = [i for i, count in enumerate(waiting) if count == 0]
    for i in order:
        for target in targets[i]:
            waiting[target] -= 1
            if waiting[target] == 0:
                order.append(target)
    return order


def _plan_with_cycles(nodes: Sequence[str], targets: list[list[int]], order_cycle: Callable[[list[str]], Sequence[str]]) -> Plan:
    components = sorted((sorted(component) for component in strong_components(targets)), key=lambda component: component[0])
    owner = [0] * len(nodes)
    for number, component in enumerate(components):
        for i in component:
            owner[i] = number
    condensed: list[list[int]] = [[] for _ in components]
    loops = [len(component) > 1 for component in components]
    for i, row in enumerate(targets):
        for target in row:
            if owner[target] != owner[i]:
                condensed[owner[i]].append(owner[target])
            elif target == i:
                loops[owner[i]] = True
    steps: list[Step] = []
    for number in _topological(condensed):
        ids = [nodes[i] for i in components[number]]
        if loops[number]:
            steps.append(("cycle", (min(ids), tuple(order_cycle(ids)))))
        else:
            steps.append(("node", ids[0]))
    return Plan(tuple(steps))


def strong_components(targets: Sequence[Sequence[int]]) -> list[list[int]]:
    """Return Tarjan's strongly connected components of the graph ``i -> targets[i]``, without recursion."""
    count = len(targets)
    found, low, on_stack = [-1] * count, [0] * count, [False] * count
    stack: list[int] = []
    components: list[list[int]] = []
    clock = 0
    for root in range(count):
        if found[root] >= 0:
            continue
        work: deque[tuple[int, int]] = deque([(root, 0)])
        while work:
            node, position = work.pop()
            if position == 0:
                found[node] = low[node] = clock
                clock += 1
                stack.append(node)
                on_stack[node] = True
            descended = False
            row = targets[node]
            while position < len(row):
                target = row[position]
                position += 1
                if found[target] < 0:
                    work.append((node, position))
                    work.append((target, 0))
                    descended = True
                    break
                if on_stack[target]:
                    low[node] = min(low[node], found[target])
            if descended:
                continue
            if low[node] == found[node]:
                components.append(_pop_component(stack, on_stack, node))
            if work:
                parent = work[-1][0]
                low[parent] = min(low[parent], low[node])
    return components


def _pop_component(stack: list[int], on_stack: list[bool], root: int) -> list[int]:
    component = []
    while True:
        node = stack.pop()
        on_stack[node] = False
        component.append(node)
        if node == root:
            return component
