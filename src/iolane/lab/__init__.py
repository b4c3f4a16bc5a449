"""A whole emulated host in which passthrough is exercised."""
