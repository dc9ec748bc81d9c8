"""Named recipes: what differs from the published method."""

from collections.abc import Sequence
from typing import NamedTuple


class Recipe(NamedTuple):
    """How IS-CAMs are made from the same network; the defaults are the published way.

    Attributes:
        contrast: how much of the background's IS-CAM is taken off those of the classes (`prototypes.contrast`).
        affinity: power of the similarity by which cells share their maps (`prototypes.spread`); None: they do not.
        class_prototypes: the maps of prototypes found in all training images (`prototypes.class_prototype`) count half.
        background: strength of the background in place of its own IS-CAM, against classes of maximum 1; None: its own.
        enlarged_background: the same where a scale enlarges the image, as maps of larger images are narrower.
    """

    name: str = "sipe"
    contrast: float = 0.0
    affinity: float | None = None
    class_prototypes: bool = False
    background: float | None = None
    enlarged_background: float | None = None

    def background_at(self, scales: Sequence[float]) -> float | None:
        """The background for maps that are averaged over these scales."""
        return self.enlarged_background if max(scales) > 1 else self.background


PLUS = Recipe(
    "plus",
    contrast=0.5,
    affinity=2.0,
    class_prototypes=True,
    background=0.5,
    enlarged_background=0.35,
)
RECIPES = {recipe.name: recipe for recipe in (Recipe(), PLUS)}
