"""A Gradio Space: watch controllers watch recorded runs.

pip install -r examples/space/requirements.txt
python examples/space/app.py
"""

from __future__ import annotations

import gradio as gr
import matplotlib

matplotlib.use("agg")
from matplotlib.figure import Figure  # noqa: E402
from replayed import answers, load_runs, playable, told  # noqa: E402

RUNS = load_runs()
FIRST = "text, well tuned"
NAMES = playable(RUNS[FIRST])
WIDTHS = ["10%", "15%", "12%", "63%"]
INTRO = """# What would it have done?

Pick a recorded fine-tuning and a controller. The controller watches the run as it happened, and the blue line is the
learning rate it would have set. It does not drive: had it driven, the run would have gone another way."""


def draw(title: str, name: str, exponent: float) -> tuple[Figure, list[list[str]], str]:
    """Picture, table of decisions and description of a run under a controller."""
    run, base_lr = RUNS[title], 10.0**exponent
    decisions = answers(run, name, base_lr)
    figure = Figure(figsize=(9, 5), layout="constrained")
    above, below = figure.subplots(2, sharex=True)
    above.plot(run.fields["loss"], color="0.35", linewidth=1)
    above.set_ylabel("training loss")
    above.set_yscale("log")
    below.plot(run.lr, color="0.6", linestyle="--", label="applied then")
    below.plot([decision.lr[0] for decision in decisions], color="tab:blue", linewidth=2, label=name)
    below.set(yscale="log", ylabel="learning rate", xlabel="update")
    below.legend(frameon=False)
    return figure, told(decisions), f"{run.text}. Base learning rate {base_lr:.1e}."


def build() -> gr.Blocks:
    """The page."""
    with gr.Blocks(title="hf_adaptive_lr") as page:
        gr.Markdown(INTRO)
        with gr.Row():
            run = gr.Dropdown(list(RUNS), value=FIRST, label="Recorded run")
            name = gr.Dropdown(NAMES, value="universal" if "universal" in NAMES else NAMES[0], label="Controller")
            exponent = gr.Slider(-7, 0, value=-3, step=0.5, label="Base learning rate, as a power of ten")
        figure, rows, words = draw(FIRST, name.value, exponent.value)
        text = gr.Markdown(words)
        picture = gr.Plot(figure, label="Loss, and the learning rate", show_label=False)
        headers = ["update", "learning rate", "why", "what it saw"]
        table = gr.Dataframe(rows, headers=headers, label="Decisions", max_height=400, column_widths=WIDTHS)
        inputs, outputs = [run, name, exponent], [picture, table, text]
        for control in inputs:
            control.change(draw, inputs, outputs)
    return page


if __name__ == "__main__":
    build().launch()
