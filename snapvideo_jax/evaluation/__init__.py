"""How good it is: the oracle of the embedded set, distances to real video, protocols."""
