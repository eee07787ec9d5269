"""What needs what: the requirements of distributions and their markers; on the client's machine.

Programs that install things know this better, but none has to be here, and pip evaluates
markers for the Python that runs it only.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Mapping


def normalize(name: str) -> str:
    """The name as indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def follow(
    wanted: list[str], requires: Callable[[str], list[str] | None], environment: Mapping[str, str]
) -> tuple[list[str], list[str]]:
    """All that is needed for `wanted`: the names that are there, and the requirements that are not."""
    seen: dict[tuple[str, str], None] = {}
    there: dict[str, None] = {}
    missing: dict[str, None] = {}
    waiting = list(wanted)
    while waiting:
        requirement = waiting.pop()
        match = re.match(r"\s*([A-Za-z0-9][A-Za-z0-9._-]*)\s*(?:\[([^\]]*)\])?\s*([^;]*)", requirement)
        if match is None:
            continue
        name = normalize(match[1])
        needs = requires(name)
        if needs is None:
            missing[match[0].strip()] = None
            continue
        there[name] = None
        for extra in ["", *re.findall(r"[\w.-]+", match[2] or "")]:
            if (name, extra) not in seen:
                seen[name, extra] = None
                waiting += [
                    need for need in needs if _applies(need, {**environment, "extra": normalize(extra)})
                ]
    return list(there), list(missing)


def _applies(requirement: str, environment: Mapping[str, str]) -> bool:
    marker = requirement.partition(";")[2].strip()
    return not marker or evaluate(marker, environment)


def evaluate(marker: str, environment: Mapping[str, str]) -> bool:
    """What the marker of a requirement says of that environment; true where it cannot be understood.

    Its grammar is a part of Python's, but for two signs that are seldom used.
    """
    try:
        tree = ast.parse(marker.replace("~=", ">=").replace("===", "=="), mode="eval")
        return _truth(tree.body, environment)
    except (SyntaxError, ValueError):
        return True


def _truth(node: ast.expr, environment: Mapping[str, str]) -> bool:
    if isinstance(node, ast.BoolOp):
        truths = [_truth(value, environment) for value in node.values]
        return all(truths) if isinstance(node.op, ast.And) else any(truths)
    if not isinstance(node, ast.Compare) or len(node.ops) != 1:
        raise ValueError(ast.dump(node))
    left, right = (_value(side, environment) for side in (node.left, node.comparators[0]))
    sign = node.ops[0]
    if isinstance(sign, ast.In | ast.NotIn):
        return (left in right) is isinstance(sign, ast.In)
    one, other = (_version(left), _version(right)) if _version(left) and _version(right) else (left, right)
    order = (one > other) - (one < other)  # type: ignore[operator]
    signs: dict[type[ast.cmpop], bool] = {
        ast.Eq: order == 0, ast.NotEq: order != 0, ast.Lt: order < 0,
        ast.LtE: order <= 0, ast.Gt: order > 0, ast.GtE: order >= 0,
    }  # fmt: skip
    return signs[type(sign)]


def _value(node: ast.expr, environment: Mapping[str, str]) -> str:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.Name) and node.id in environment:
        return environment[node.id]
    raise ValueError(ast.dump(node))


def _version(text: str) -> tuple[int, ...]:
    """The numbers of a version, without the zeros at its end; nothing for other text."""
    match = re.match(r"\d+(?:\.\d+)*", text)
    numbers = [int(number) for number in match[0].split(".")] if match else []
    while len(numbers) > 1 and numbers[-1] == 0:
        numbers.pop()
    return tuple(numbers)
