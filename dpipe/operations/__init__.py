"""What a policy can do to a sample."""
