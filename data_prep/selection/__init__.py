"""Selections: each keeps some of the rows of a file by what all of them are together; a recipe gives their order."""

from typing import Annotated

from pydantic import Field

from data_prep.selection.balanced import BalancedSelection
from data_prep.selection.base import Selection
from data_prep.selection.diverse import DiverseSelection
from data_prep.selection.g_vendi import GVendiSelection
from data_prep.selection.prismatic import PrismaticSelection
from data_prep.selection.shortest_correct import ShortestCorrectSelection

Selections = Annotated[
    BalancedSelection | ShortestCorrectSelection | DiverseSelection | GVendiSelection | PrismaticSelection,
    Field(discriminator="type"),
]

__all__ = [
    "BalancedSelection",
    "DiverseSelection",
    "GVendiSelection",
    "PrismaticSelection",
    "Selection",
    "Selections",
    "ShortestCorrectSelection",
]
