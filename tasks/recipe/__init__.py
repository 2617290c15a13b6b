"""The Recipe: config file, command line, form in the Prefect UI and documentation at once.

Every field carries a description with its unit. Unknown keys are errors that name the nearest
known one, and every resolved value knows where it came from: default, recipe or command line.
"""

from tasks.recipe.evaluation import Backend, Evaluation, Gate, Judge, Measure, Role, Suite
from tasks.recipe.mixture import Mixture, ShareMeasure
from tasks.recipe.operation import Price, Registry, Schedule
from tasks.recipe.part import Kind, Mode, Name, Part
from tasks.recipe.quality import Drift, Handling, Quality, RuleSetting, Sensitive, Severity
from tasks.recipe.reading import PRESETS, Setting, is_recipe, load, parse, settings_of
from tasks.recipe.search import Search, Value, Vary, bounds, in_space, may_vary, resolved, value_of, variant
from tasks.recipe.sources import Base, Source
from tasks.recipe.training import OF_LORA, Training
from tasks.recipe.whole import Recipe

__all__ = [
    "OF_LORA",
    "PRESETS",
    "Backend",
    "Base",
    "Drift",
    "Evaluation",
    "Gate",
    "Handling",
    "Judge",
    "Kind",
    "Measure",
    "Mixture",
    "Mode",
    "Name",
    "Part",
    "Price",
    "Quality",
    "Recipe",
    "Registry",
    "Role",
    "RuleSetting",
    "Schedule",
    "Search",
    "Sensitive",
    "Setting",
    "Severity",
    "ShareMeasure",
    "Source",
    "Suite",
    "Training",
    "Value",
    "Vary",
    "bounds",
    "in_space",
    "is_recipe",
    "load",
    "may_vary",
    "parse",
    "resolved",
    "settings_of",
    "value_of",
    "variant",
]
