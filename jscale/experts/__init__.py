"""How a model's experts are used while it trains: what is counted, kept, and told of it."""
