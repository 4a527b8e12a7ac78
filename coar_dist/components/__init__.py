"""What can be ablated: the ordered index of components, their discovery in a model, and how a mask is applied."""
