"""Which artifact to use: candidates, their accuracy and speed, and the verdict over them."""
