"""From this machine to many: joining a cluster, what it is found to be, and what its nodes must be given."""
