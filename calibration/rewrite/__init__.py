"""What is written into a graph: Q/DQ nodes, and the changes that make them lose less."""
