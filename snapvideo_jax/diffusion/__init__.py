"""What the noise law is: the mathematics, free of networks, configs and data."""
