"""What `up` brings along on one machine: a Redis server, a data folder, children that die with it."""
