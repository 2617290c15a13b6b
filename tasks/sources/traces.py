"""Thinking traces for gym tasks: (trace, conclusion) from an entry's metadata.

Each trace computes its steps itself and arrives at its own conclusion, so that comparing it with the
task's answer checks both.
"""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Callable
from fractions import Fraction
from typing import Any

Trace = Callable[[dict[str, Any]], tuple[str, str]]
_SIGNS = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/"}


def _expression(metadata: dict[str, Any]) -> tuple[str, str]:
    """`12 - 5 + 8`: one operation a step, in the order of precedence."""
    steps: list[str] = []
    result = _reduce(ast.parse(metadata["expression"].strip(), mode="eval").body, steps)
    return "\n".join(steps) or _decimal(result), _decimal(result)


def _reduce(node: ast.expr, steps: list[str]) -> Fraction:
    if isinstance(node, ast.Constant):
        return Fraction(str(node.value))
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -_reduce(node.operand, steps)
    if not isinstance(node, ast.BinOp):
        raise ValueError(f"no arithmetic: {ast.unparse(node)}")
    left, right = _reduce(node.left, steps), _reduce(node.right, steps)
    sign = _SIGNS[type(node.op)]
    result = {"+": left + right, "-": left - right, "*": left * right}[sign] if sign != "/" else left / right
    steps.append(f"{_decimal(left)} {sign} {_decimal(right)} = {_decimal(result)}")
    return result


def _decimal(value: Fraction) -> str:
    """The number in decimal digits, or as a fraction where they have no end."""
    if value.denominator == 1:
        return str(value.numerator)
    for places in range(1, 20):
        if (value * 10**places).denominator == 1:
            digits = f"{abs(value.numerator) * 10**places // value.denominator:0{places + 1}d}"
            return f"{'-' if value < 0 else ''}{digits[:-places]}.{digits[-places:]}"
    return str(value)


def _worked_solution(metadata: dict[str, Any]) -> tuple[str, str]:
    """A solution in the manner of GSM8K, which ends in `#### answer`."""
    solution, _, conclusion = metadata["answer_cot"].rpartition("####")
    return solution.strip(), conclusion.strip()


def _euclid(numbers: list[int], steps: list[str]) -> int:
    result = numbers[0]
    for number in numbers[1:]:
        large, small = max(result, number), min(result, number)
        while small:
            steps.append(f"{large} = {large // small} * {small} + {large % small}")
            large, small = small, large % small
        result = large
    return result


def _gcd(metadata: dict[str, Any]) -> tuple[str, str]:
    steps: list[str] = []
    result = _euclid(metadata["numbers"], steps)
    return "\n".join([*steps, f"The last divisor is {result}."]), str(result)


def _lcm(metadata: dict[str, Any]) -> tuple[str, str]:
    steps: list[str] = []
    result = metadata["numbers"][0]
    for number in metadata["numbers"][1:]:
        divisor = _euclid([result, number], steps)
        steps.append(f"{result} * {number} / {divisor} = {math.lcm(result, number)}")
        result = math.lcm(result, number)
    return "\n".join(steps), str(result)


def _factors(metadata: dict[str, Any]) -> tuple[str, str]:
    rest, divisor, steps = metadata["number"], 2, []
    factors: list[int] = []
    while divisor * divisor <= rest:
        if rest % divisor:
            divisor += 1
            continue
        steps.append(f"{rest} = {divisor} * {rest // divisor}")
        factors.append(divisor)
        rest //= divisor
    factors.append(rest)
    steps.append(f"{rest} is prime.")
    return "\n".join(steps), " × ".join(map(str, factors))


def _legs(metadata: dict[str, Any]) -> tuple[str, str]:
    from reasoning_gym.arithmetic.leg_counting import ANIMALS

    total, steps = 0, []
    for animal, count in metadata["animals"].items():
        legs = count * ANIMALS[animal]
        steps.append(f"{animal}: {count} * {ANIMALS[animal]} = {legs}, together {total + legs}")
        total += legs
    return "\n".join(steps), str(total)


def _letters(metadata: dict[str, Any]) -> tuple[str, str]:
    letter, total, steps = metadata["target_letter"], 0, []
    for word in metadata["span"]:
        found = len(re.findall(re.escape(letter), word, re.IGNORECASE))
        total += found
        steps.append(f"{word}: {found}, together {total}")
    return "\n".join(steps), str(total)


TRACES: dict[str, Trace] = {
    "basic_arithmetic": _expression,
    "chain_sum": _expression,
    "decimal_chain_sum": _expression,
    "gcd": _gcd,
    "gsm_symbolic": _worked_solution,
    "lcm": _lcm,
    "leg_counting": _legs,
    "letter_counting": _letters,
    "prime_factorization": _factors,
    "products": _expression,
}
