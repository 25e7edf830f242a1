"""The noise law: the mathematics, free of networks, configs and data."""
