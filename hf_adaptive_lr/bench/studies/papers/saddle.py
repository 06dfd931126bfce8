"""How long SGD takes to leave a strict saddle under random rates, beside a constant one of the same mean.

    python -m hf_adaptive_lr.bench.studies.papers.saddle

The setting of PLRS' theorem 2, in two weights: f(x, y) = (x^2 - y^2) / 2 + y^4 / 4. The origin is a strict saddle with
curvatures 1 and -1, the minima are at y = -1 and 1. Gradients have normal noise, the same for all rates. A run starts
at the saddle and has left it at the first update after which |y| >= 1/2, half of the way to a minimum. (What exactly
the theorem counts as leaving, and its constants, were not at hand.)

What to expect: u multiplies the gradient. Near the saddle that is little but noise, so the mean square of a kick is
1 + v times that of the constant mean, v = Var(u) / eta_c^2, whatever the distribution; and once the run is on its way,
log(1 + eta) grows more slowly on average than at the mean, by Jensen's inequality.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from ....controller import Controller
from ....controllers import PLRS, Constant
from ....observation import Observation
from ...markdown import table
from ...rows import Row, read_rows
from ...runner import command_parser
from ...stats import mean_interval
from .. import measured
from ..command import carry_out

NAME = "plrs_saddle.jsonl"
COMMAND = "python -m hf_adaptive_lr.bench.studies.papers.saddle"
RUNS, SIGMA, LIMIT, SEED = 1000, 0.01, 3000, 0
L_MAX = (0.02, 0.05, 0.1, 0.2, 0.4)
"""Below 1 / beta, which is 1/2: the largest curvature, at the minima, is 2."""
PAPER, WIDEST = PLRS(), PLRS(low=1e-6, high=1.7)
"""The paper's interval over L_max, and the widest of the same mean."""
F64 = torch.float64

Rates = Callable[[int, int], Iterator[Tensor]]
"""Number of runs and seed to factors of L_max, (runs,), update by update."""


def gaussian(plrs: PLRS, runs: int, seed: int) -> Iterator[Tensor]:
    """Factors of the same mean and variance from a normal distribution; some of a wide one are below 0."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield plrs.mean_factor + plrs.variance**0.5 * torch.randn(runs, generator=generator, dtype=F64)


def answers(controller: Controller, runs: int, seed: int) -> Iterator[Tensor]:
    """Factors of a controller that sees nothing."""
    lr, state = torch.ones(runs, dtype=F64), controller.init((runs,), seed=seed)
    while True:
        factor, state = controller.decide(Observation(step=0, total_steps=None, lr=lr, base_lr=lr), state)
        yield factor


RATES: Mapping[str, Rates] = {
    "constant": partial(answers, Constant(factor=PAPER.mean_factor)),
    "uniform, the paper's width": partial(answers, PAPER),
    "Gaussian of that variance": partial(gaussian, PAPER),
    "uniform, the widest": partial(answers, WIDEST),
    "Gaussian of the widest's variance": partial(gaussian, WIDEST),
}
"""All of the mean 0.85 L_max."""


def slope(w: Tensor) -> Tensor:
    """Gradient of f at weights (runs, 2)."""
    return w * torch.tensor([1.0, -1.0], dtype=F64) + w**3 * torch.tensor([0.0, 1.0], dtype=F64)


def leave(rates: Rates, l_max: float, *, sigma: float = SIGMA, runs: int = RUNS, limit: int = LIMIT) -> Tensor:
    """Updates until each of many runs has left the saddle, (runs,); NaN for one that has not after `limit`."""
    noise, factors = torch.Generator().manual_seed(SEED), rates(runs, SEED + 1)
    w, times = torch.zeros(runs, 2, dtype=F64), torch.full((runs,), torch.nan, dtype=F64)
    for step in range(1, limit + 1):
        gradient = slope(w) + sigma * torch.randn(runs, 2, generator=noise, dtype=F64)
        w = w - l_max * next(factors)[:, None] * gradient
        times[(w[:, 1].abs() >= 0.5) & times.isnan()] = step
        if not times.isnan().any():
            break
    return times


def tried(l_max: float) -> list[Row]:
    """Rows of all rates at one L_max: the mean time, and the mean difference from the constant rate."""
    times = {name: leave(rates, l_max) for name, rates in RATES.items()}
    rows = []
    for name, mine in times.items():
        mean, gap = mean_interval(mine.tolist()), mean_interval((mine - times["constant"]).tolist())
        row = {"row": "saddle", "l_max": l_max, "rate": name, "left": int((~mine.isnan()).sum()), "runs": RUNS}
        row |= {"updates": round(mean.value, 3), "half_width": round(mean.half, 3)}
        rows.append({**row, "minus_constant": round(gap.value, 3), "gap_half_width": round(gap.half, 3)})
    return rows


def section(folder: Path) -> str:
    """The section of the paper's page; empty without rows."""
    rows = [row for row in read_rows(folder / NAME) if row["row"] != "header"]
    if not rows:
        return ""
    quiet = next(row for row in rows if row["row"] == "quiet")
    lines = [
        [
            f"{row['l_max']:g}",
            row["rate"],
            f"{row['left']:,} of {row['runs']:,}",
            f"{row['updates']:.1f} ± {row['half_width']:.1f}",
            "-" if row["rate"] == "constant" else f"{row['minus_constant']:+.2f} ± {row['gap_half_width']:.2f}",
            f"{row['l_max'] * row['updates']:.2f}",
        ]
        for row in rows
        if row["row"] == "saddle"
    ]
    head = ["L_max", "rate", "left", "updates to leave", "minus constant", "updates x L_max"]
    without = f"Without gradient noise {quiet['left']} of {quiet['runs']:,} runs of the widest draws left within "
    return (
        f"{_TEXT}\n\n{table(head, lines)}\n\n{without}{quiet['limit']:,} updates.\n\n```bash\n{COMMAND}\n```\n\n"
        f"Rows: `rows/{NAME}`.\n\n"
    )


_TEXT = """## A strict saddle

The theorem's setting in two weights: f = (x² - y²) / 2 + y⁴ / 4, runs from the saddle at the origin, normal gradient
noise that is the same for all rates, and rates of one mean. A run has left when it is half of the way to a minimum. ±
is half a ninety-five percent t interval; differences are paired by the noise."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run, print the section, write the rows."""
    parser = command_parser("studies.papers.saddle", __doc__)
    parser.add_argument("--output-dir", type=Path, default=measured.ROWS, metavar="DIR", help="folder of the rows")
    options = parser.parse_args(argv)
    return carry_out(parser.prog, lambda: _study(options.output_dir))


def _study(folder: Path) -> None:
    torch.set_num_threads(1)
    first = measured.header(COMMAND, sigma=SIGMA, seed=SEED)
    rows = [row for l_max in L_MAX for row in tried(l_max)]
    stuck = leave(RATES["uniform, the widest"], L_MAX[-1], sigma=0.0)
    rows.append({"row": "quiet", "left": int((~stuck.isnan()).sum()), "runs": RUNS, "limit": LIMIT})
    measured.publish(folder / NAME, first, rows, "\n".join(map(str, rows)))


if __name__ == "__main__":
    sys.exit(main())
