"""The yardstick: what a controller costs and what it brings, as rows that the commands write."""
