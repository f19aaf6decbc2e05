"""What a quantised bundle loses and gains, and the guard that bounds the loss."""
