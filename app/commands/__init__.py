"""The commands of `tailrun`, a file for each group; `app.cli` gives them their names."""
