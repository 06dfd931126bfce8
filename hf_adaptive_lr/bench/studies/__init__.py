"""Studies: measurements beside the benchmark, one command each.

python -m hf_adaptive_lr.bench.studies.NAME

What they share is in `command.py`, `measured.py` (files of single measurements) and `timing.py`.
"""
