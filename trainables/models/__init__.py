"""Student and teacher networks."""
