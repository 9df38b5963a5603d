"""What all figures share: their colours, and captions that do not cover one another.

The colours are told apart by people with any colour vision (Okabe & Ito 2008, "Color universal design"). No figure
tells by colour alone: lines differ in their dashes too, and markers in their shape.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from matplotlib.text import Annotation

__all__ = [
    "BLACK",
    "BLUE",
    "DISTINCT",
    "FAINT",
    "GREEN",
    "GREY",
    "INK",
    "ORANGE",
    "PURPLE",
    "SKY",
    "VERMILLION",
    "YELLOW",
    "separate_captions",
]

BLACK: Final = "#000000"
ORANGE: Final = "#e69f00"
SKY: Final = "#56b4e9"
GREEN: Final = "#009e73"
YELLOW: Final = "#f0e442"
BLUE: Final = "#0072b2"
VERMILLION: Final = "#d55e00"
PURPLE: Final = "#cc79a7"

DISTINCT: Final = (BLUE, VERMILLION, GREEN, PURPLE, SKY, ORANGE, BLACK)
"""For lines of no fixed meaning, in this order; yellow is too light for a line on white."""

INK: Final = "#26323f"
"""Text and thresholds."""
GREY: Final = "#8a8f98"
"""What is there for comparison only."""
FAINT: Final = "#d9dee4"
"""Grids."""


def separate_captions(figure: Figure, captions: Sequence[Annotation]) -> None:
    """Move each caption to the nearest position inside the first frame where it covers no other caption and no point.

    :param captions: annotations of points of the first axes, with their offset in points.
    """
    from matplotlib.text import Text
    from matplotlib.transforms import Bbox

    figure.draw_without_rendering()
    radius = figure.dpi / 72 * 7
    frame = figure.axes[0].get_window_extent()
    marks = [figure.axes[0].transData.transform(caption.xy) for caption in captions]
    occupied = [Bbox.from_extents(x - radius, y - radius, x + radius, y + radius) for x, y in marks]
    for caption in captions:
        for dy, dx in product((6, -14, 18, -26, 30, -38, 42, -50), (8, -8)):
            caption.xyann = (dx, dy)
            caption.set_horizontalalignment("left" if dx > 0 else "right")
            box = Text.get_window_extent(caption)  # without the leader line
            if frame.x0 <= box.x0 and box.x1 <= frame.x1 and not any(box.overlaps(other) for other in occupied):
                break
        occupied.append(box)
