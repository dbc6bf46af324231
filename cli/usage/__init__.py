"""Options of the commands, and the refusal of those that would have no effect in a call."""
