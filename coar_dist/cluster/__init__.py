"""Ray: hands ranges of work to actors and knows neither engine, nor model, nor regression."""
