"""Parameters -> a folder that other programs read."""
