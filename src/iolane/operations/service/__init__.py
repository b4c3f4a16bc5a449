"""A device server as a service: in the background, watched, limited, logged."""
