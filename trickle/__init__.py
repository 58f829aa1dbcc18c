"""trickle: a stream processor on Trio."""
