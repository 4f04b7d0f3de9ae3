"""Programs as processes: their output as lines, how they are stopped, how they end. Standard library only."""
