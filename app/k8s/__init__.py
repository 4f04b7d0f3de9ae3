"""Tool runs as Kubernetes Jobs: `executor` is the way in; only `client` talks to the cluster."""
