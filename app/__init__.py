"""Tailrun: run agent jobs on your own machines and tail them."""
