"""A run's decisions to look at: slices, a table for pandas, a picture, and what a notebook shows of them."""

from __future__ import annotations

import io
from collections import deque
from collections.abc import Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any, overload

from ..report.inline import facts, sparkline
from .decision import Decision

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

_QUIET = ("decision", "between")  # reasons that need no mark
_COLUMNS = ("reason", "ramp", "proposed", "bounded", "detail")
_LOSSES = ("loss", "eval_loss")


class Trace(deque[Decision]):
    """The decisions of a run's last updates, the oldest first; `maxlen` of them are kept.

    Example:
        >>> trace = Trace((Decision(step, (0.1,), "decision") for step in range(5)), maxlen=3)
        >>> [decision.step for decision in trace[-2:]]
        [3, 4]
    """

    @overload  # type: ignore[override]
    def __getitem__(self, index: int) -> Decision: ...
    @overload
    def __getitem__(self, index: slice) -> Trace: ...
    def __getitem__(self, index: int | slice) -> Decision | Trace:
        """One decision, or a slice of them as another trace."""
        if isinstance(index, slice):
            return Trace(list(self)[index])
        return super().__getitem__(index)

    def to_pandas(self) -> DataFrame:
        """A row for each update, by its index.

        Columns are `lr` of group 0, `lr_0`, `lr_1` and so on where groups ever differ, `reason`, `ramp`, `proposed`,
        `bounded`, `detail`, and one for each signal that was seen.

        Raises:
            ImportError: pandas is not installed.
        """
        from pandas import DataFrame, Index

        differ = any(len(set(d.lr)) > 1 for d in self)
        rows = [
            {
                "lr": d.lr[0],
                **({f"lr_{i}": lr for i, lr in enumerate(d.lr)} if differ else {}),
                **{name: getattr(d, name) for name in _COLUMNS},
                **dict(d.observation or {}),
            }
            for d in self
        ]
        steps = Index([d.step for d in self], name="step")
        return DataFrame(rows, index=steps, columns=None if rows else ["lr", *_COLUMNS])

    def plot(self) -> Figure:
        """The learning rate of group 0, with a mark where it was not simply decided; above it losses that were seen.

        Returns:
            A matplotlib figure, which a notebook shows; `figure.savefig("lr.png")` keeps it.

        Raises:
            ImportError: matplotlib is not installed.
        """
        return _draw(list(self))

    def _repr_html_(self) -> str:
        if not self:
            return facts("No update yet", [])
        last = self[-1]
        rates = [decision.lr[0] for decision in self]
        asked = sum(decision.proposed is not None for decision in self)
        return facts(
            f"Updates {self[0].step:,} to {last.step:,}",
            [
                ("decisions", f"{asked:,}"),
                ("learning rate", f"{min(rates):.3g} to {max(rates):.3g}, now {last.lr[0]:.3g}"),
                ("last", f"{last.reason} {last.detail}".strip()),
            ],
            sparkline(rates, "learning rate, logarithmic"),
        )


def _draw(decisions: Sequence[Decision]) -> Figure:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("plot() needs matplotlib; pip install matplotlib", name="matplotlib") from error

    class Shown(Figure):  # without pyplot there is no window, and no notebook knows how to show a figure
        def _repr_png_(self) -> bytes:
            picture = io.BytesIO()
            self.savefig(picture, format="png", dpi=90)
            return picture.getvalue()

    seen = {name: _observed(decisions, name) for name in _LOSSES}
    heights = (1, 1.4) if any(seen.values()) else (1,)  # not every controller looks at losses
    figure = Shown(figsize=(7, 1 + 1.3 * sum(heights)), layout="constrained")
    *above, below = figure.subplots(len(heights), 1, sharex=True, height_ratios=heights, squeeze=False)[:, 0]
    below.set(xlabel="update", ylabel="learning rate", yscale="log")
    for axes in above:
        axes.set_ylabel("loss seen")
        for name, points in seen.items():
            axes.plot(*zip(*points, strict=True), marker=".", linewidth=1, label=name) if points else None
        axes.legend(fontsize=8)
    _draw_rates(below, decisions)
    return figure


def _observed(decisions: Sequence[Decision], name: str) -> list[tuple[int, Any]]:
    return [(d.step, d.observation[name]) for d in decisions if d.observation and name in d.observation]


def _draw_rates(axes: Any, decisions: Sequence[Decision]) -> None:
    stride = max(1, len(decisions) // 4000)
    drawn = [d for d in islice(decisions, 0, None, stride) if d.lr[0] > 0]
    axes.plot([d.step for d in drawn], [d.lr[0] for d in drawn], color="black", linewidth=1)
    for reason in dict.fromkeys(d.reason for d in decisions if d.reason not in _QUIET):
        marked = [d for d in decisions if d.reason == reason and d.lr[0] > 0]
        axes.plot([d.step for d in marked], [d.lr[0] for d in marked], ".", markersize=4, label=reason)
    if len(axes.lines) > 1:
        axes.legend(fontsize=8)
