"""Studies: measurements beside the benchmark, one command each.

python -m hf_adaptive_lr.bench.studies.NAME
"""
