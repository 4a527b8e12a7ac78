"""Which subsets of components are ablated: mask designs."""
