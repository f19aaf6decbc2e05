"""From ranges to graphs: Q/DQ nodes, and the changes that make them lose less."""
