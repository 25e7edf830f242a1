"""How good it is: the oracle of the embedded set, its protocol, and plots of a sweep."""
