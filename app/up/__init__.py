"""Everything on one machine: `tailrun up`."""
