"""Language models: one protocol over the makers' libraries, with retries, limits and prices of our own."""
