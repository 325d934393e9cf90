"""The figures of a sensitivity study in the order of the report; each has its own file in this folder."""

from __future__ import annotations

from dashboards.picture.picture import Picture
from dashboards.sensitivity.curves import curves_picture
from dashboards.sensitivity.indices import indices_picture
from dashboards.sensitivity.maps import maps_picture
from dashboards.sensitivity.tags import tag_pictures
from tuner.sensitivity.results import Sensitivity


def sensitivity_pictures(found: Sensitivity) -> tuple[Picture, ...]:
    """Indices, curves with safe ranges, pairwise maps and curves by tag, as far as they were studied."""
    pictures = []
    if found.outputs:
        pictures.append(indices_picture(found))
    if found.curves:
        pictures.append(curves_picture(found))
    if found.maps:
        pictures.append(maps_picture(found))
    pictures += tag_pictures(found)
    return tuple(pictures)
