"""Curves that grow in a notebook's cell while a run trains."""

import time
from collections.abc import Callable, Sequence
from typing import Any

from jscale.metrics.cell import in_notebook
from jscale.pictures.chart import Chart, Series
from jscale.pictures.frame import Axis
from jscale.run.events import Evaluated, Event, Saved, Stepped


class LivePlot:
    """A callback of `Trainer` that draws curves below the cell and draws them anew as they grow.

        Trainer(recipe, callbacks=[LivePlot()])

    `names` are metrics of the steps; those of the held-out text join them where they have the same
    name. Redrawn at most every `seconds`, and at every save. Outside of a notebook nothing is
    shown; `chart()` has the curves all the same.
    """

    def __init__(
        self,
        names: Sequence[str] = ("loss",),
        seconds: float = 1.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.names, self.seconds = tuple(names), seconds
        self._clock = clock
        self._curves: dict[str, tuple[list[float], list[float]]] = {}
        self._drawn: float | None = None
        self._handle: Any = None

    def __call__(self, event: Event) -> None:
        """Take the numbers of an event."""
        if isinstance(event, Stepped | Evaluated):
            group = "train" if isinstance(event, Stepped) else "held out"
            for name in self.names:
                if name in event.values:
                    x, y = self._curves.setdefault(f"{group} {name}", ([], []))
                    x.append(float(event.step))
                    y.append(float(event.values[name]))
        late = self._drawn is None or self._clock() - self._drawn >= self.seconds
        if self._curves and (isinstance(event, Saved) or (late and isinstance(event, Stepped))):
            self.redraw()

    def chart(self) -> Chart:
        """The curves so far."""
        curves = [Series(name, x, y) for name, (x, y) in self._curves.items()]
        return Chart(", ".join(self.names), curves, Axis("step"))

    def redraw(self) -> None:
        """Show the curves as they are now."""
        self._drawn = self._clock()
        if self._handle is not None:
            self._handle.update(self.chart())
        elif in_notebook():
            from IPython.display import display

            self._handle = display(self.chart(), display_id=True)
