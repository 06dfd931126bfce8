"""The benchmark of all controllers and, in `studies`, those of the papers, the guard and of costs.

`tasks methods plan train` make rows; `stats scores comparison tables page pictures results` turn them into
BENCHMARK.md. The placebo of a controller moves the learning rate at random, as often and as far as the controller:
what is gained over it is due to what the controller sees.
"""
