"""The guard study: trainings disturbed on purpose, or healthy but restless, with and without the divergence guard.

python -m hf_adaptive_lr.bench.studies.guard --jobs 2
"""
