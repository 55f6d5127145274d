"""Archives that tests read: a good one, and one for each way in which it can be broken."""
