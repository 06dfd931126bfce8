"""GRPO and RLOO on a tiny model whose reward can reach 1: what a controller and the guard do to them.

    python -m tests.compatibility.rollouts --output-dir model_cards

Every run is one of TRL's trainers, through the subclass or the callback, with `constant` (the user's learning rate) or
`universal`, with and without the guard. The reward is the share of words of a completion that are the right one.
Generations are counted by the calls of the reward function: one for each update, however often a loss is looked at.
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
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import trl
from tqdm import tqdm

from hf_adaptive_lr.artifacts import replace_file
from hf_adaptive_lr.bench.rows import Row, read_rows, write_rows
from hf_adaptive_lr.bench.studies.measured import header
from hf_adaptive_lr.hub.markdown import table
from hf_adaptive_lr.trainer.callback import AdaptiveLRCallback
from hf_adaptive_lr.trainer.guard_callback import GuardCallback
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


def measure(seeds: int, updates: int) -> Iterable[Row]:
    """The rows of all combinations."""
    ways = itertools.product(
        TRAINERS, ("subclass", "callback"), ("constant", "universal"), (False, True), range(seeds)
    )
    for name, integration, controller, guard, seed in tqdm(list(ways), unit="run"):
        yield run(name, integration, controller, guard=guard, seed=seed, updates=updates)


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
    return f"""# GRPO and RLOO

Means over {seeds} seeds of {max(row["updates"] for row in runs)} updates of a tiny model, whose reward is the share of
the words of a completion that are the right one, at most 1: over the first and the last {LAST} updates. `constant` is
AdamW at {LR:g}. Alarms are all that the guard did, in all seeds together. Each update generates once.

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
    options = parser.parse_args(argv)
    if options.seeds < 1 or options.updates < 2:
        parser.error("--seeds must be at least 1 and --updates at least 2")
    rows = [header("python -m tests.compatibility.rollouts", ["trl"])]
    rows += measure(options.seeds, options.updates)
    write_rows(options.output_dir / ROWS, rows)
    replace_file(options.output_dir / PAGE, page(read_rows(options.output_dir / ROWS)))
    print(json.dumps({"runs": len(rows) - 1, "page": str(options.output_dir / PAGE)}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
