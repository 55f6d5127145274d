"""Any user's dense part as a graph: followed with its lookups cut out, made smaller, its layers packed."""
