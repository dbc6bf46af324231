"""What tests share: small models, data sets, checkpoints and servers."""
