"""A run in its folder: opened, restored, trained to its end, told to whoever listens."""
