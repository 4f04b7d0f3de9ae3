"""What tests of every kind use: real servers, faults, clients that watch, data."""
