"""What ml-opt is measured on: peers, architectures, data and the scripts that write their tables."""
