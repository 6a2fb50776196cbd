"""Files of this folder travel with every checkpoint (`trust_remote_code`); rules in CONTRIBUTING.md, "Shipped code"."""
