"""How well attributions predict margins under masks that were not used to fit them."""
