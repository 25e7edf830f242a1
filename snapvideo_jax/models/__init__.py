"""What the network is: flax modules that know no noise law, no data and no mesh."""
