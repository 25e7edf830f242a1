"""How fast networks are beside each other: timing, the rows of a report, and its pictures."""
