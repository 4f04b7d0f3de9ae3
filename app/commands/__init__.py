"""The commands of `tailrun`, a file for each group; `tailrun.cli` gives them their names."""
