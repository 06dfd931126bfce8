"""A Gradio Space: watch controllers watch recorded runs.

pip install -r examples/space/requirements.txt
python examples/space/app.py
"""

from __future__ import annotations

from pathlib import Path

import gradio as gr
import matplotlib

matplotlib.use("agg")
from matplotlib.figure import Figure  # noqa: E402
from replayed import Recorded, answers, load_runs, playable, told  # noqa: E402
from uploaded import MAX_BYTES, OWN, read_upload  # noqa: E402

RUNS = load_runs()
FIRST = "text, well tuned"
NAMES = playable(RUNS[FIRST])
UPLOAD = (
    "Your own run: trainer_state.json, or lr_trace.jsonl (at most 2 MB; numbers alone are read, and nothing is kept)"
)
WIDTHS = ["10%", "15%", "12%", "63%"]
INTRO = """# What would it have done?

Pick a recorded fine-tuning, or bring your own, and a controller. The controller watches the run as it happened, and
the blue line is the learning rate it would have set. It does not drive: had it driven, the run would have gone
another way."""


def draw(title: str, name: str, exponent: float, own: Recorded | None = None) -> tuple[Figure, list[list[str]], str]:
    """Picture, table of decisions and description of a run under a controller; `own` is the visitor's."""
    run, base_lr = own if title == OWN else RUNS[title], 10.0**exponent
    if run is None:
        raise gr.Error("upload a run first")
    try:
        decisions = answers(run, name, base_lr)
    except ValueError as error:  # a controller that needs what this run did not record
        raise gr.Error(str(error)) from error
    figure = Figure(figsize=(9, 5), layout="constrained")
    above, below = figure.subplots(2, sharex=True)
    losses = run.fields.get("loss", [])
    above.plot(losses, color="0.35", linewidth=1)
    above.set_ylabel("training loss")
    above.set_yscale("log" if losses and min(losses) > 0 else "linear")
    below.plot(run.lr, color="0.6", linestyle="--", label="applied then")
    below.plot([decision.lr[0] for decision in decisions], color="tab:blue", linewidth=2, label=name)
    below.set(yscale="log", ylabel="learning rate", xlabel="update")
    below.legend(frameon=False)
    return figure, told(decisions), f"{run.text}. Base learning rate {base_lr:.1e}."


def take(file: str) -> tuple[Recorded, gr.Dropdown, gr.Dropdown]:
    """The visitor's run, and the choices that it opens."""
    try:
        run = read_upload(Path(file))
    except (ValueError, OSError) as error:
        raise gr.Error(str(error)) from error
    names = playable(run)
    chosen = next(name for name in ("universal", "plateau", "linear") if name in names)
    return run, gr.Dropdown([*RUNS, OWN], value=OWN), gr.Dropdown(names, value=chosen)


def build() -> gr.Blocks:
    """The page."""
    with gr.Blocks(title="hf_adaptive_lr", delete_cache=(600, 600)) as page:
        gr.Markdown(INTRO)
        with gr.Row():
            run = gr.Dropdown(list(RUNS), value=FIRST, label="Recorded run")
            name = gr.Dropdown(NAMES, value="universal" if "universal" in NAMES else NAMES[0], label="Controller")
            exponent = gr.Slider(-7, 0, value=-3, step=0.5, label="Base learning rate, as a power of ten")
        file = gr.File(label=UPLOAD, file_types=[".json", ".jsonl"], height=110)
        own = gr.State(None)
        figure, rows, words = draw(FIRST, name.value, exponent.value)
        text = gr.Markdown(words)
        picture = gr.Plot(figure, label="Loss, and the learning rate", show_label=False)
        headers = ["update", "learning rate", "why", "what it saw"]
        table = gr.Dataframe(rows, headers=headers, label="Decisions", max_height=400, column_widths=WIDTHS)
        inputs, outputs = [run, name, exponent, own], [picture, table, text]
        for control in (run, name, exponent):
            control.change(draw, inputs, outputs)
        file.upload(take, [file], [own, run, name]).success(draw, inputs, outputs)
    return page


if __name__ == "__main__":
    build().launch(max_file_size=MAX_BYTES)
