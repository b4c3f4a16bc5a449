"""Moving a running machine to another host: two iolane processes agree on which of them runs it."""
