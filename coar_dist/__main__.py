"""``python -m coar_dist`` is ``coar-dist``."""

from coar_dist.app import main

main()
