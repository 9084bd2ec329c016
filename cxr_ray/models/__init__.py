"""Networks and their checkpoints, training, and the backends that score."""
