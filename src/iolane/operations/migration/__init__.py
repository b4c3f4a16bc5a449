"""Moving a machine to another host."""
