"""A cluster of processes: a real HTTP API server, a Job controller, a kubelet, and faults on order."""
