"""Where logs live that outlive a process and that several replicas read: what a store is, and those that there are."""
