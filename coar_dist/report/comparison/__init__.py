"""Two runs or methods side by side: ``coar_dist.compare`` and ``coar-dist compare``.

``sides`` matches components and examples, ``measure`` reads both in blocks of examples, ``compared`` is what was found,
``render`` writes it as one page, with the style and the tables of the report page, and ``command`` is the command line.
"""
