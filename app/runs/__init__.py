"""Use cases of runs, without HTTP: submit, cancel, take over."""
