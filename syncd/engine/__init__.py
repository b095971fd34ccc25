"""The effects around the decision: few, ordered, safe to repeat."""
