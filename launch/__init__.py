"""From a shell to a cluster: the command line and the recipes."""
