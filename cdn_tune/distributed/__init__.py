"""Ray: starting or joining a cluster, and training one trial on several workers."""
