"""TRL's GRPO, RLOO, DPO, KTO and Reward trainers on tiny models: controllers, the guard, and steps too large.

    python -m tests.compatibility.rollouts --output-dir model_cards
    python -m tests.compatibility.rollouts --output-dir model_cards --only rates    # the other rows stay

Runs at multiples of a rate, and the signals that tell, are in `steps.py`. Every other run is one of TRL's trainers,
through the subclass or the callback, with `constant` (the user's learning rate) or `universal`, with and without the
guard. The reward is the share of words of a completion that are the right one. Generations are counted by the calls
of the reward function: one for each update, however often a loss is looked at.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import itertools
import json
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import trl
from tqdm import tqdm

from hf_adaptive_lr.artifacts import replace_file
from hf_adaptive_lr.bench.pictures import png
from hf_adaptive_lr.bench.rows import Row, append_row, pack, read_rows, write_rows
from hf_adaptive_lr.bench.studies.measured import header
from hf_adaptive_lr.hub.markdown import table
from hf_adaptive_lr.trainer.callback import AdaptiveLRCallback
from hf_adaptive_lr.trainer.guard_callback import GuardCallback
from tests.compatibility import steps
from tests.compatibility.checks import Kit
from tests.compatibility.trainers import ROLLOUT, dogs, rollout_parts

UPDATES, SEEDS, LR, BATCH = 200, 2, 3e-3, 32
LAST = 20
"""Updates at the end over which the reward is averaged."""
PAGE, ROWS = "ROLLOUTS.md", "rows/rollouts.jsonl"
TRAINERS = ("GRPO", "RLOO")


def run(name: str, integration: str, controller: str, *, guard: bool, seed: int, updates: int = UPDATES) -> Row:
    """The row of one training: rewards at both ends, alarms, generations, and the error of a refusal."""
    calls = 0

    def reward(completions: list[str], **_: Any) -> list[float]:
        nonlocal calls
        calls += 1
        return dogs(completions)

    watch = GuardCallback() if guard else None
    settings = {**ROLLOUT, "num_generations": 8, "bf16": False, "gradient_checkpointing": False}
    kit = Kit(
        getattr(trl, f"{name}Trainer"),
        getattr(trl, f"{name}Config"),
        lambda: {**rollout_parts(), "reward_funcs": reward, "callbacks": [watch] if watch else []},
        settings,
    )
    changes = {"max_steps": updates, "seed": seed, "learning_rate": LR, "per_device_train_batch_size": BATCH}
    error, quiet = "", io.StringIO()
    with (
        tempfile.TemporaryDirectory() as folder,
        warnings.catch_warnings(),
        contextlib.redirect_stdout(quiet),
        contextlib.redirect_stderr(quiet),
    ):
        warnings.simplefilter("ignore")
        if integration == "subclass":
            trainer = kit.build(Path(folder), controller, **changes)
        else:
            trainer = kit.build(Path(folder), callback=AdaptiveLRCallback(controller), **changes)
        try:
            trainer.train()
        except ValueError as refused:
            error = str(refused)
    rewards = [entry["reward"] for entry in trainer.state.log_history if "reward" in entry]
    events = watch.guard.events if watch is not None and watch.guard is not None else []
    return {
        "row": "run",
        "trainer": name,
        "integration": integration,
        "controller": controller,
        "guard": guard,
        "seed": seed,
        "updates": trainer.state.global_step,
        "first_reward": _mean(rewards[:LAST]),
        "last_reward": _mean(rewards[-LAST:]),
        "alarms": len(events),
        "rollbacks": sum(event["action"] == "rollback" for event in events),
        "generations": calls,
        "error": error,
    }


def _mean(values: Sequence[float]) -> float | None:
    return round(sum(values) / len(values), 4) if values else None


def measure_runs(seeds: int, updates: int) -> Iterable[Row]:
    """The rows of all combinations."""
    ways = itertools.product(
        TRAINERS, ("subclass", "callback"), ("constant", "universal"), (False, True), range(seeds)
    )
    for name, integration, controller, guard, seed in tqdm(list(ways), unit="run"):
        yield run(name, integration, controller, guard=guard, seed=seed, updates=updates)


PARTS: dict[str, Callable[[int, int], Iterable[Row]]] = {
    "runs": measure_runs,
    "rates": steps.measure_rates,
    "signals": steps.measure_signals,
}


def page(rows: Sequence[Row]) -> str:
    """The rows as a table in Markdown: means over the seeds."""
    runs = [row for row in rows if row["row"] == "run"]
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in runs:
        key = (row["trainer"], row["integration"], row["controller"], row["guard"])
        groups.setdefault(key, []).append(row)
    lines = [[*key[:3], "yes" if key[3] else "no", *_cells(group)] for key, group in groups.items()]
    seeds = len({row["seed"] for row in runs})
    titles = ["trainer", "through", "controller", "guard", "first reward", "last reward", "alarms", "generations"]
    rates = {row["seed"] for row in rows if row["row"] == "rate"}
    seeds_told = {row["seed"] for row in rows if row["row"] == "signal"}
    return f"""# GRPO, RLOO, DPO, KTO and Reward

Tiny models; nothing here says what large ones do.

## A learning rate that is too large

The recipe of [examples/grpo.py](../examples/grpo.py): GRPO on a Llama of some ten thousand weights that learns to
repeat the first word of its prompt, {steps.UPDATES} updates, a reward of at most 1. Mean reward of the last
{steps.LAST} updates, and in brackets of all, at multiples of {steps.USUAL:g}; {len(rates)} seeds. `universal` finds a
rate of its own.

{steps.rates_table(rows)}

![Rewards and learning rates]({steps.PICTURE})

## Which signal tells

The same words in five of TRL's trainers, {steps.SHORT} updates: in the mean of the last {steps.LAST}, one minus the
reward (GRPO, RLOO) or the loss. Seeds: {len(seeds_told)}. Short is a run that came less than half as far down as the
best of its trainer. What has no line was not run.

{steps.ends_table(rows)}

Medians of {steps.EARLY} updates of `constant`, from the second on, at each multiple. A run is ruined that
fell short at a larger rate than that of the best. In the last column is the share of pairs of updates, one of
a ruined run and one of another, in which the ruined one's is the larger: 1 or 0 tells them apart, 0.5 does
not. `kl` is the divergence of one update, at which `kl_target` looks. What the trainers log as `kl` is the
one from the reference model: a distance, not a step; DPO and Reward log none.

{steps.signals_table(rows)}

## Every way to attach it, and the guard

GRPO and RLOO. Means over {seeds} seeds of {max(row["updates"] for row in runs)} updates of a tiny model,
whose reward is the share of the words of a completion that are the right one, at most 1: over the first
and the last {LAST} updates. `constant` is AdamW at {LR:g}. Alarms are all that the guard did, in all
seeds together. Each update generates once.

{table(titles, lines).strip()}

A callback hears the loss that the model returns, and these trainers compute their own: a controller that needs it is
refused before the first update. `universal` needs none.

```bash
python -m tests.compatibility.rollouts --output-dir model_cards
```
"""


def _cells(group: Sequence[Row]) -> list[str]:
    if any(row["error"] for row in group):
        return ["refused", "", "", f"{sum(row['generations'] for row in group) / len(group):g}"]
    first, last = (sum(row[name] for row in group) / len(group) for name in ("first_reward", "last_reward"))
    alarms = str(sum(row["alarms"] for row in group)) if group[0]["guard"] else ""
    return [f"{first:.2f}", f"{last:.2f}", alarms, f"{sum(row['generations'] for row in group) / len(group):g}"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run everything and write rows and page; 0, or 2 for a bad argument."""
    parser = argparse.ArgumentParser(prog="python -m tests.compatibility.rollouts", description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=SEEDS, help=f"runs of each kind; {SEEDS} if not given")
    parser.add_argument("--updates", type=int, default=UPDATES, help=f"length of a run; {UPDATES} if not given")
    parser.add_argument("--output-dir", type=Path, required=True, help="folder of the page and its rows")
    parser.add_argument("--only", choices=PARTS, nargs="*", default=list(PARTS), help="measure these, or none")
    options = parser.parse_args(argv)
    if options.seeds < 1 or options.updates < 2:
        parser.error("--seeds must be at least 1 and --updates at least 2")
    file = options.output_dir / ROWS
    for part in options.only:
        kept = [row for row in read_rows(file) if row.get("part", "runs") != part]
        command = f"python -m tests.compatibility.rollouts --only {part} --seeds {options.seeds}"
        write_rows(file, [*kept, header(command, ["trl"], part=part)])
        for row in PARTS[part](options.seeds, options.updates):
            append_row(file, {**row, "part": part})
        pack(file)
    rows = read_rows(file)
    replace_file(options.output_dir / PAGE, page(rows))
    replace_file(options.output_dir / steps.PICTURE, lambda path: path.write_bytes(png(steps.draw(rows))))
    print(json.dumps({"rows": len(rows), "page": str(options.output_dir / PAGE)}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
