"""What to search: studies, arms, spaces and published numbers. One file per built-in study."""

from spaces.families import is_at_limit
from spaces.load import BUILT_IN, BadInput, Extension, adjust, extended, load_study, to_yaml
from spaces.space import Choice, Range, Space
from spaces.study import A_A_CONTROL, BASELINE, Arm, Budget, Claim, Effect, Published, Study
from trainables.names import nearest

__all__ = [
    "A_A_CONTROL",
    "BASELINE",
    "BUILT_IN",
    "Arm",
    "BadInput",
    "Budget",
    "Choice",
    "Claim",
    "Effect",
    "Extension",
    "Published",
    "Range",
    "Space",
    "Study",
    "adjust",
    "extended",
    "is_at_limit",
    "load_study",
    "nearest",
    "to_yaml",
]
