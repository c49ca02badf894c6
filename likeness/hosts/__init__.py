"""The two places a method can run; the only packages that know a host."""
