"""Pictures as text: curves, meshes and shards as SVG, and one self-contained HTML page.

Nothing here knows of runs or recipes, and nothing needs a network, a font or a plotting library.
"""

from jscale.pictures.chart import Chart, Series
from jscale.pictures.draw import draw
from jscale.pictures.frame import Axis
from jscale.pictures.live import LivePlot
from jscale.pictures.picture import Picture

__all__ = ["Axis", "Chart", "LivePlot", "Picture", "Series", "draw"]
