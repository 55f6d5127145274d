"""Any user's dense part as a graph: captured by torch.export, made smaller, its layers packed."""
