"""What a program would cost: counted, compiled for absent chips, predicted."""
