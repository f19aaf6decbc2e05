"""Post-training INT8: ranges from a few hundred pictures, Q/DQ graphs, a guarantee on accuracy."""
