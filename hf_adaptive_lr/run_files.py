"""Names of the files that a run leaves in its output folder; nothing heavy is imported here."""

TRACE_NAME = "lr_trace.jsonl"
"""The learning rate of every update and why, one JSON object per line."""

CONTROLLER_NAME = "controller.json"
"""Who decided: the controller's type, config and origin."""

EVENTS_NAME = "events.jsonl"
"""What a divergence guard did, one JSON object per line; no file where it did nothing."""
