"""Divergence in a run: notice it, skip the update, go back to a good state and cut the learning rate, or stop.

How [`DivergenceGuard`] decides, in a training loop of one's own or, as [`GuardCallback`], in a Trainer:

An update in trouble is skipped until `max_skips` is used up (or three in succession have had a loss or gradient that
is finite and out of bounds), where a healthy update pays back a quarter of a skip, so that a run that is bad every
third time does not continue for ever. A loss that has shifted for four updates, and a slow divergence, go back at
once; one far above its best, at a learning rate that has grown since then, diverges slowly after 16 updates already,
and no snapshot is taken of it. So does a loss that rises from the very start while an update moves the weights by
percents of their norm: then the learning rate is cut to where it moves them by `safe_drift`.

Trouble that is there again at the very next update after a rollback comes from the data, not from weights or LR: the
cut is undone. A finite loss is then skipped for 20 more updates, which outlives a burst of bad batches, and after
that accepted: the data has changed for good. Either way losses like these do not alarm when they come again (another
source, a season), until they have not been seen for some hundred updates. For values that are not finite each further
rollback leaves the LR alone and doubles the patience.

A shift of the loss is also accepted when going back for one has not helped before: it would go back to the same
snapshot, or the loss is no higher than it was less than 128 updates ago; but not if the learning rate has grown since
then. Nor is a cut taken back if the rate had grown since the snapshot. Shifts alone end no run; values that are not
finite, and losses that explode, do; once all rollbacks are used up, not before `max_skips` have been tried.

Snapshots are taken every `snapshot_every` applied updates, only when nothing is suspicious; one counts as good after
2 more healthy updates and if it is older than the trouble, until then the guard goes back to the one before. When
other weights train than before, a new one replaces them all. If weights or optimizer state turn out not to be finite
when one is due, the guard goes back. Rollbacks are never forgotten: at most `max_rollbacks` in a run.
"""
