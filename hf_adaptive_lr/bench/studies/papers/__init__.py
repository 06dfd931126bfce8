"""The paper study: papers' claims on small real tasks, beside baselines and controls.

python -m hf_adaptive_lr.bench.studies.papers NAME
"""
