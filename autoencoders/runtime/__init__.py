"""Command line, files, processes and devices: nothing in here depends on autoencoders."""
