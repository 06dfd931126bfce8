"""Recovery from divergence: detection, snapshots and rollback."""
