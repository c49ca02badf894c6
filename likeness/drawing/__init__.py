"""Everything drawn for eyes or for a ControlNet."""
