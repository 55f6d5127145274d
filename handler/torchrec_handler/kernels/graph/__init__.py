"""Any user's dense part as a graph: followed, made smaller, its layers packed."""
