"""The benchmark of all controllers, the study of five papers and the study of the guard, as rows that commands write.

Files: `yardstick_*` are the older benchmark, `trouble_*` the guard study; `studies` has the paper study (`papers`) and
single measurements. A lane is one of several trainings that go on side by side, each seed's or method's own. The
placebo of a controller moves the learning rate at random, as often and as far as the controller: what is gained over
it is due to what the controller sees.
"""
