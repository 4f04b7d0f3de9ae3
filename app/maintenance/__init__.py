"""Periodic work of which one worker at a time is the leader."""
