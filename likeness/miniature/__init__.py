"""The shipped miniature: a small world of drawn people, its models and its referees."""
