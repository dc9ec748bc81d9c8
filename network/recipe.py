"""Named recipes: what differs from the published method."""

from typing import NamedTuple


class Recipe(NamedTuple):
    """How IS-CAMs are made from the same network; the defaults are the published way.

    Attributes:
        contrast: how much of the background's IS-CAM is taken off those of the classes (`prototypes.contrast`).
        affinity: power of the similarity by which cells share their maps (`prototypes.spread`); None: they do not.
        class_prototypes: the maps of prototypes found in all training pictures (`prototypes.class_prototype`) count half.
        background: strength of the background in place of its own IS-CAM, against classes of maximum 1; None: its own.
    """

    name: str = "sipe"
    contrast: float = 0.0
    affinity: float | None = None
    class_prototypes: bool = False
    background: float | None = None


RECIPES = {recipe.name: recipe for recipe in (Recipe(), Recipe("plus", contrast=0.5, affinity=2.0, class_prototypes=True, background=0.5))}
