"""Image sets as uint8 arrays."""
