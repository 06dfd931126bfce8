"""The benchmark of all controllers, the study of five papers and the study of the guard, as rows that commands write.

Files: `yardstick_*` are the benchmark (`hf-adaptive-lr bench`, BENCHMARK.md), `verdict_*` the paper study, `trouble_*`
the guard study, `stat_*` statistics; others are single measurements. A lane is one of several trainings that go on
side by side, each seed's or method's own. The placebo of a controller moves the learning rate at random, as often and
as far as the controller: what is gained over it is due to what the controller sees.
"""
