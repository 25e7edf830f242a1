"""The networks: flax modules that know no noise law, no data and no mesh."""
