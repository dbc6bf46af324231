"""Rules that translate the names of tensors in others' checkpoints into ours.

A rule is a pattern of their names, and the corresponding name, or names, here.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

# The last of a rule's targets, where a tensor ends with one row, or several, that the official code never reads.
UNUSED_ROW = "(unused row)"
UNUSED_ROWS = "(unused rows)"


@dataclass(frozen=True)
class Rule:
    """Official names that match `pattern` become `targets` (templates of the pattern's groups)."""

    pattern: str
    targets: tuple[str, ...]


@dataclass(frozen=True)
class Aside:
    """Official names that match `pattern` have no counterpart here, for `reason`."""

    pattern: str
    reason: str


def translate(key: str, rules: Sequence[Rule | Aside]) -> tuple[str, ...] | Aside | None:
    """Our names of an official tensor, or why it has none; None if no rule matches."""
    for rule in rules:
        match = re.fullmatch(rule.pattern, key)
        if match:
            return rule if isinstance(rule, Aside) else tuple(match.expand(target) for target in rule.targets)
    return None


def inside_pretext(rules: Sequence[Rule | Aside]) -> tuple[Rule | Aside, ...]:
    """The rules of a detector for a pretext that holds it as `detector`."""
    return tuple(
        Rule(rule.pattern, tuple(f"detector.{target}" for target in rule.targets)) if isinstance(rule, Rule) else rule
        for rule in rules
    )


def without_prefix(prefix: str, rules: Sequence[Rule | Aside]) -> tuple[Rule | Aside, ...]:
    """The rules for names that follow `prefix` (a pattern) in the checkpoint."""
    return tuple(
        Rule(prefix + rule.pattern, rule.targets)
        if isinstance(rule, Rule)
        else Aside(prefix + rule.pattern, rule.reason)
        for rule in rules
    )
